"""The command that times methods beside each other."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import tiny_digits, tiny_pairs

from experiments import benchmark, permuted_mnist
from experiments.engine import timing


def test_ratios_are_medians_of_rounds_not_ratios_of_medians():
    # The machine is 10 times slower in the second round.
    seconds = {
        "slow": np.array([4e-6, 40e-6, 6e-6]),
        "backprop": np.array([2e-6, 20e-6, 2e-6]),
    }
    first, second = benchmark.rows(seconds, "backprop")
    assert first["case"] == "backprop"
    assert second["ratio to backprop"] == "2 (2 to 2.5)"
    assert second["µs per lane and update"] == "6 (5 to 23)"


@pytest.fixture(scope="module")
def timed():
    config = tiny_digits(num_seeds=2)
    config.cases.backprop.batch_size = 4
    return config, timing.time_cases(
        config, permuted_mnist.make_problem, steps=20, rounds=3
    )


def test_every_case_is_timed_in_every_round(timed):
    config, seconds = timed
    assert set(seconds) == set(config.cases)
    for times in seconds.values():
        assert times.shape == (3,)
        assert (times > 0).all()
    assert config.examples_per_task == 40  # The config itself is left as it is.


def test_a_task_of_epochs_is_shortened_to_whole_epochs():
    """Forty images a class make an epoch of 8 updates; 20 updates are 2.5 epochs."""
    config = tiny_pairs(train_per_class=40, batch_size=10)
    config.cases.linear.batch_size = 40
    cases = timing._short(config, 20).cases
    assert (cases.backprop.num_epochs, cases.linear.num_epochs) == (2, 10)
    assert timing._short(config, 1).cases.backprop.num_epochs == 1


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *arguments],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


def test_the_command_prints_a_line_for_each_case():
    result = run_command(
        "permuted_mnist",
        "--config=configs/pmnist.py:smoke",
        "--config.hidden_layers=1",
        "--steps=20",
        "--rounds=2",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[1] for line in lines[2:4]} == {
        "backprop",
        "continual_backprop",
    }
    assert re.search(
        r"backprop +\| [\d.]+ \([\d.]+ to [\d.]+\) +\| 1 \(1 to 1\)", result.stdout
    )
    assert "2 rounds of 20 updates" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "--config=configs/pmnist.py"), "permuted_mnist"),
        (("permuted_mnist", "--config=configs/pmnist.py", "--reference=l2"), "'l2'"),
    ],
)
def test_bad_arguments_are_named_with_the_choices(arguments, message):
    result = run_command(*arguments)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr

"""The command that times training."""

import csv
import pathlib
import re
import subprocess
import sys

import pytest

from configs import benchmark as presets
from experiments import benchmark
from experiments.timing import torch_loop
from experiments.timing.table import COLUMNS

ROOT = pathlib.Path(__file__).parents[2]


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_config_has_a_line_for_each_case():
    result = run_command(
        "permuted_mnist",
        "--config=configs/pmnist.py:smoke",
        "--config.hidden_layers=1",
        "--steps=20",
        "--rounds=2",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[1] for line in lines[2:5]} == {
        "backprop",
        "continual_backprop",
        "floor",
    }
    assert re.search(
        r"backprop +\| [\d.]+ \([\d.]+ to [\d.]+\) +\| 1 \(1 to 1\)", result.stdout
    )
    assert "2 rounds of 20 updates" in lines[-1]


def test_a_preset_writes_a_table_and_a_file(tmp_path):
    path = tmp_path / "found.csv"
    result = run_command(
        "--preset=smoke", "--only=1 x 4", "--nocheck", "--rounds=1", f"--csv={path}"
    )
    assert result.returncode == 0, result.stderr
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == tuple(COLUMNS)
    assert {row["method"] for row in read} == {
        "backprop",
        "continual_backprop",
        "floor",
    }
    for row in read:
        assert (row["problem"], row["network"]) == ("permuted_mnist", "1 x 4")
        assert (row["lanes"], row["rounds"], row["status"]) == ("2", "1", "ok")
        for column in ("us_per_lane_step", "operations", "bytes", "memory_bytes"):
            assert float(row[column]) > 0
    assert "1,440,000,000 updates of 1 x 4 units by backprop" in result.stdout


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


def test_an_unknown_preset_is_named_with_the_choices():
    with pytest.raises(ValueError, match="'gpu'.*'accelerator'"):
        presets.get_config("gpu")


def test_without_pytorch_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(torch_loop.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch"):
        torch_loop.check_installed()


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_groups_of_a_preset_differ_and_hold_the_network_of_the_projection(preset):
    config = presets.get_config(preset)
    titles = set()
    for group in config.groups:
        assert group.problem in benchmark.PROBLEMS
        assert {"backprop", "continual_backprop"} == set(group.config.cases)
        titles.add((group.problem, group.network, group.config.num_seeds))
    assert len(titles) == len(config.groups)
    assert any(group.network == config.paper.network for group in config.groups)

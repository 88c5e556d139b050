"""The command line: presets, overrides, messages and what a run leaves behind."""

import errno
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from optional_data import MNIST_DIR, needs_mnist
from programs import run_program
import pytest
import threadpoolctl
from tiny_runs import shrink, tiny_digits, write_idx_files

from configs import pmnist
from experiments import permuted_mnist
from experiments.learning.checks import ConfigError
from experiments.reporting import plots, run_results
from experiments.run import cases, command_line, machine, runner

ROOT = pathlib.Path(__file__).parents[2]
PRESETS = ("default", "smoke")
SLOW_PRESETS = ("small", "paper", "width", "rate")


@pytest.mark.parametrize(
    "preset",
    [
        *PRESETS,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_PRESETS),
    ],
)
def test_every_preset_runs_with_tiny_settings(preset, tmp_path, capsys):
    config = pmnist.get_config(preset)
    names = list(config.cases)
    shrink(config)
    if config.dataset == "mnist":
        write_idx_files(tmp_path)
        config.data_dir = str(tmp_path)
    folder = tmp_path / "run"
    assert command_line.train(config, folder, permuted_mnist.make_problem) == 0
    dataset = run_results.load(folder)
    assert list(dataset.case.values) == names
    assert dataset.accuracy.notnull().all()
    printed = capsys.readouterr().out
    assert all(f"| {name}" in printed for name in names)
    for name in ("results.nc", "config.json", "figures/learning.png"):
        assert (folder / name).stat().st_size > 0
        assert name in printed


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="papr") as error:
        pmnist.get_config("papr")
    assert all(preset in str(error.value) for preset in (*PRESETS, *SLOW_PRESETS))


def test_missing_data_ends_with_a_message_and_writes_nothing(tmp_path, capsys):
    config = tiny_digits(dataset="mnist", data_dir=str(tmp_path / "nowhere"))
    status = command_line.train(config, tmp_path / "run", permuted_mnist.make_problem)
    assert status == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("units", "needed"), [(10**6, "8.00TB"), (10**9, "8.00EB")])
def test_a_network_larger_than_the_memory_is_refused_before_it_is_built(
    tmp_path, capsys, units, needed
):
    """Two of its layers have units x units weights of 4 bytes."""
    config = tiny_digits(hidden_units=units, hidden_layers=3)
    folder = tmp_path / "run"
    assert command_line.train(config, folder, permuted_mnist.make_problem) == 1
    message = capsys.readouterr().err
    assert f"needs at least {needed} of memory for each of its 2 lanes" in message
    assert re.search(
        r"this machine has [\d.]+[GT]B: lower config.hidden_units", message
    )
    assert not folder.exists()


def test_lanes_that_together_exceed_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "device_limit", lambda: 2**20)
    state = {"leaf": jax.ShapeDtypeStruct((2**18, 1), jnp.float32)}
    config = tiny_digits()
    machine.check_fits("wide", config, state, num_lanes=1)
    with pytest.raises(ConfigError, match=r"'wide'.*3 lanes.*config.num_seeds"):
        machine.check_fits("wide", config, state, num_lanes=3)
    config.replacement_log = 1000
    with pytest.raises(ConfigError, match=r"lower .* or config.replacement_log"):
        machine.check_fits("wide", config, state, num_lanes=3)


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ("OSError: [Errno 28] No space", "Free disk space for RUN; then the"),
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat 0x1"),
            (
                "JaxRuntimeError: RESOURCE_EXHAUSTED: Out",
                "Lower the large numbers in",
            ),
        ),
    ],
)
def test_a_machine_that_is_too_small_is_told_in_two_lines(
    error, messages, monkeypatch, capsys
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    assert command_line.train(tiny_digits(), pathlib.Path("RUN"), None) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_tasks", 0),
        ("examples_per_task", -1),
        ("checkpoint_every", 0),
        ("lanes_per_block", -1),
        ("rank_every", -1),
        ("replacement_log", -1),
        ("hidden_layers", 10**9),
    ],
)
def test_counts_that_cannot_be_are_errors_of_the_config_or_of_the_case(field, value):
    with pytest.raises(
        ConfigError, match=rf"^config\.{field} must be from .* {value}\."
    ):
        cases.prepare_cases(tiny_digits(**{field: value}), None)
    config = tiny_digits(cases={"odd": {field: value}})
    with pytest.raises(
        ConfigError, match=rf"^config\.cases\.odd\.{field} must be from"
    ):
        cases.prepare_cases(config, None)


def test_a_disk_that_is_full_when_figures_are_drawn_leaves_the_table(
    tmp_path, monkeypatch, capsys
):
    def fail(dataset, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plots, "draw_run", fail)
    config = tiny_digits()
    assert command_line.train(config, tmp_path, permuted_mnist.make_problem) == 1
    printed = capsys.readouterr()
    assert "| backprop" in printed.out
    assert f"Free disk space for {tmp_path}" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/pmnist.py", "--config.hiden_units=3"], "hidden_units"),
        (["--config=configs/pmnist.py", "--config.num_tasks=many"], "'many'"),
        (["--config=configs/pmnist.py", "--config.sweep.hidden_units=(1,2)"], "cases"),
        (
            ["--config=configs/pmnist.py", "--config.method=backprop"],
            "--config.cases.continual_backprop.method",
        ),
        (["--config=configs/pmnist.py:papr"], "choose from"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config=configs/pmnist.py", "stray"], "stray"),
        ([], "config"),
    ],
)
def test_a_wrong_command_ends_with_a_short_message(arguments, message):
    finished = run_program("permuted_mnist", *arguments)
    assert finished.returncode != 0
    assert message in finished.stdout + finished.stderr


@pytest.mark.slow
def test_the_command_runs_and_reads_sweeps_from_flags(tmp_path):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.permuted_mnist"),
            "--config=configs/pmnist.py:smoke",
            "--config.sweep.step_size=(0.01, 0.03)",
            "--config.num_tasks=1",
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    dataset = run_results.load(tmp_path / "run")
    np.testing.assert_array_equal(dataset.step_size, [0.01, 0.03])
    assert "step/s" in finished.stderr


# Says which of the modules that take long are there when the first task begins.
STARTED = """
import pathlib, sys
from configs import scr
from experiments import slowly_changing_regression
from experiments.run import runner
from experiments.run.cases import CompiledCase
def begun(*arguments):
    slow = {"matplotlib", "pandas", "scipy", "sklearn", "tensorflow_datasets", "xarray"}
    sys.exit(f"begun with {sorted(slow & sys.modules.keys())}")
CompiledCase.run_task = begun
config, folder = scr.get_config("smoke"), pathlib.Path(sys.argv[1])
runner.run(config, folder, slowly_changing_regression.make_problem)
"""


@pytest.mark.slow
def test_training_begins_before_what_draws_and_labels_results_is_imported(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.stderr.strip().endswith("begun with []")


@pytest.mark.slow
@needs_mnist
def test_real_mnist_is_learned_within_one_task(tmp_path):
    """2,000 images reach what a linear model would, far above chance."""
    config = pmnist.get_config("small")
    config.data_dir, config.num_tasks, config.num_seeds = str(MNIST_DIR), 1, 2
    config.examples_per_task, config.step_size = 2000, 0.01
    assert (
        command_line.train(config, tmp_path / "run", permuted_mnist.make_problem) == 0
    )
    accuracy = run_results.load(tmp_path / "run").accuracy
    assert ((accuracy > 0.6) & (accuracy < 0.9)).all()


def test_lapack_has_no_threads_beside_the_devices(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")  # Those of the tests stay.
    for name in machine._LAPACK_THREADS:
        monkeypatch.delenv(name, raising=False)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        machine.use_all_cores()
        pools = threadpoolctl.threadpool_info()
    blas = [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]
    assert blas and max(blas) == 1

"""Results of a run that is not over: written, read, shown, not compared."""

import json
import types

import numpy as np
import pytest
from tiny_runs import tiny_digits
import xarray as xr

from experiments import compare, figures, permuted_mnist, results
from experiments.reporting import files, run_results, survival
from experiments.run import runner
from experiments.run.cases import CompiledCase

pytestmark = pytest.mark.slow

MAKE_PROBLEM = permuted_mnist.make_problem
TIMES = ["steps_per_second"]
HOW_FAR = "tasks done: backprop 3 of 3, continual_backprop {} of 3"


def die_at(monkeypatch, call):
    run_task, calls = CompiledCase.run_task, []

    def die(self, state, task):
        calls.append(task)
        if len(calls) == call:
            raise RuntimeError("power cut")
        return run_task(self, state, task)

    monkeypatch.setattr(CompiledCase, "run_task", die)


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A run that died in the second task of its second case, and the config."""
    folder = tmp_path_factory.mktemp("runs") / "dead"
    config = tiny_digits(
        num_tasks=3,
        checkpoint_every=1,
        replacement_log=50,
        maturity_threshold=5,
        replacement_rate=0.05,
    )
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 5)
        patch.setattr(runner, "_LEAST_SECONDS", 0)
        patch.setattr(runner, "_TIMES_A_WRITE", 0)
        with pytest.raises(RuntimeError, match="power cut"):
            runner.run(config, folder, MAKE_PROBLEM)
    return folder, config


def test_results_of_a_run_that_died_hold_what_its_checkpoints_hold(dead, tmp_path):
    folder, config = dead
    with xr.open_dataset(folder / "results.nc") as opened:
        dataset = opened.load()
    whole = runner.run(config, tmp_path / "whole", MAKE_PROBLEM)
    assert not run_results.unfinished(whole)
    assert json.loads(dataset.attrs["tasks_done"]) == {
        "backprop": 3,
        "continual_backprop": 1,
    }
    assert json.loads(dataset.attrs["tasks_planned"]) == {
        "backprop": 3,
        "continual_backprop": 3,
    }
    done = {"backprop": slice(3), "continual_backprop": slice(1)}
    for case, tasks in done.items():
        one, two = (
            each.drop_vars(TIMES).sel(case=case).isel(task=tasks)
            for each in (dataset, whole)
        )
        xr.testing.assert_equal(one, two)
    rest = dataset.sel(case="continual_backprop").isel(task=slice(1, None))
    for name, values in rest.data_vars.items():
        assert "task" not in values.dims or values.isnull().all(), name


def test_a_case_that_has_not_begun_is_there_without_values(tmp_path, monkeypatch):
    """With the dimensions of the whole, here `point`, since the sweeps differ."""
    config = tiny_digits(checkpoint_every=1)
    config.cases.continual_backprop.sweep = {"replacement_rate": (0.01, 0.1)}
    die_at(monkeypatch, 3)
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(config, tmp_path, MAKE_PROBLEM)
    dataset = run_results.load(tmp_path)
    assert dataset.loss.dims == ("case", "point", "seed", "task")
    assert dataset.loss.sel(case="backprop", point=0).notnull().all()
    assert dataset.loss.sel(case="continual_backprop").isnull().all()
    assert "continual_backprop 0 of 2" in run_results.unfinished(dataset)


def call(main, monkeypatch, *arguments, **flags):
    """Calls the main function of a command with its flags."""
    values = {name: types.SimpleNamespace(value=value) for name, value in flags.items()}
    for name, value in values.items():
        monkeypatch.setitem(main.__globals__, name, value)
    main(["command", *map(str, arguments)])


def test_results_of_an_unfinished_run_are_shown_with_a_remark(
    dead, monkeypatch, capsys
):
    folder, _ = dead
    for flags in (
        {"_CSV": False, "_TASKS": None, "_OUTPUT": None},
        {"_CSV": False, "_TASKS": ["0", "-1"], "_OUTPUT": None},
        {"_CSV": True, "_TASKS": None, "_OUTPUT": None},
    ):
        call(results._main, monkeypatch, folder, **flags)
        printed = capsys.readouterr()
        assert "backprop" in printed.out
        assert HOW_FAR.format(1) in printed.err
        assert "Run its command again" in printed.err


def test_figures_of_an_unfinished_run_are_drawn_with_a_remark(
    dead, monkeypatch, capsys
):
    """The log of replacements has a task that the results do not hold."""
    folder, _ = dead
    log = folder / files.REPLACEMENTS_FILE
    with log.open("a") as file:
        file.write("continual_backprop,1,0,3,dense_0,2,9,0.5\n")
    call(figures._main, monkeypatch, folder)
    printed = capsys.readouterr()
    assert str(folder / "figures" / "learning.png") in printed.out
    assert HOW_FAR.format(1) in printed.err
    lives = survival.read_lives(log, run_results.load(folder))
    assert list(lives) == [("continual_backprop", "dense_0")]
    for deaths, alive in lives.values():
        assert deaths.sum() + alive.sum() == 2 * 5 * 40  # Seeds, units, updates.


@pytest.mark.parametrize("is_tuning_run", [False, True])
def test_an_unfinished_run_is_not_compared(dead, monkeypatch, capsys, is_tuning_run):
    folder, _ = dead
    with pytest.raises(SystemExit):
        call(
            compare._main,
            monkeypatch,
            *([] if is_tuning_run else [folder]),
            _TUNING_RUN=[str(folder)] if is_tuning_run else [],
            _TUNING_SEEDS=1,
            _EVALUATE=False,
            **dict.fromkeys(
                (
                    *("_NUM_SEEDS", "_NUM_TASKS", "_WORKDIR", "_OVERWRITE"),
                    "_ALLOW_CHANGED_CODE",
                )
            ),
            _REFERENCE="backprop",
            _BOOTSTRAP_SEED=0,
            _OUTPUT=None,
        )
    message = capsys.readouterr().err
    assert f"is unfinished ({HOW_FAR.format(1)})" in message
    assert "run its command again" in message


def test_unfinished_results_take_a_small_share_of_a_run(tmp_path, monkeypatch):
    """By a clock that only writes of results (2 s) and tasks (1 s) move on."""
    clock, run_task, save = [0.0], CompiledCase.run_task, run_results.save
    tasks_done = []

    def timed_task(self, state, task):
        clock[0] += 1
        return run_task(self, state, task)

    def timed_save(dataset, folder):
        clock[0] += 2
        tasks_done.append(json.loads(dataset.attrs["tasks_done"])["backprop"])
        return save(dataset, folder)

    monkeypatch.setattr(CompiledCase, "run_task", timed_task)
    monkeypatch.setattr(run_results, "save", timed_save)
    fake = types.SimpleNamespace(
        monotonic=lambda: clock[0], perf_counter=lambda: clock[0]
    )
    monkeypatch.setattr(runner, "time", fake)
    config = tiny_digits(num_tasks=100, checkpoint_every=2)
    config.cases = {"backprop": {"method": "backprop"}}
    runner.run(config, tmp_path, MAKE_PROBLEM)
    # After 10 s, then every 20 x 2 s at the next checkpoint, and at the end.
    assert tasks_done == [10, 50, 90, 100]


def test_a_run_goes_on_where_unfinished_results_cannot_be_written(
    tmp_path, monkeypatch, capsys
):
    save = run_results.save

    def fail_once(dataset, folder):
        if run_results.unfinished(dataset):
            raise PermissionError(13, "Permission denied")
        return save(dataset, folder)

    monkeypatch.setattr(run_results, "save", fail_once)
    dataset = runner.run(tiny_digits(num_tasks=1), tmp_path, MAKE_PROBLEM)
    assert np.isfinite(dataset.accuracy).all()
    assert "Permission denied. The run continues" in capsys.readouterr().err

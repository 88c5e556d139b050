"""Runs, resumed runs and refused runs of a tiny problem."""

import json
import os
import signal

import numpy as np
import pytest
from tiny_runs import run_dying_once, tiny_digits
import xarray as xr

import cbp_jax
from experiments import permuted_mnist
from experiments.reporting import run_results
from experiments.run import runner
from experiments.run.cases import CompiledCase
from experiments.run.folder import RunFolderError

MAKE_PROBLEM = permuted_mnist.make_problem
TIMES = ["steps_per_second"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of four tasks, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    config = tiny_digits(num_tasks=4, checkpoint_every=1)
    return runner.run(config, folder, MAKE_PROBLEM), folder


def test_results_have_the_promised_variables_and_dimensions(finished):
    dataset, folder = finished
    assert dict(dataset.sizes) == {"case": 2, "seed": 2, "task": 4, "layer": 2}
    assert dataset.accuracy.dims == ("case", "seed", "task")
    for name in ("dead_units", "effective_rank", "stable_rank", "weight_magnitude"):
        assert dataset[name].dims == ("case", "seed", "task", "layer")
        assert dataset[name].sel(layer="dense_0").notnull().all()
    assert list(dataset.case.values) == ["backprop", "continual_backprop"]
    assert list(dataset.layer.values) == ["dense_0", "head"]
    assert ((dataset.accuracy >= 0) & (dataset.accuracy <= 1)).all()
    assert json.loads(dataset.attrs["config"])["examples_per_task"] == 40
    xr.testing.assert_identical(run_results.load(folder), dataset)


def test_seeds_differ_and_methods_with_one_seed_start_alike(finished):
    dataset, _ = finished
    magnitude = dataset.weight_magnitude.sel(task=0, layer="dense_0")
    backprop, continual = magnitude.values
    assert backprop[0] != backprop[1]
    # The first task of 40 steps ends before any unit is mature (100).
    np.testing.assert_allclose(backprop, continual, rtol=1e-6)
    np.testing.assert_allclose(*dataset.loss.sel(task=0).values, rtol=1e-6)


@pytest.mark.slow
def test_a_lane_does_not_depend_on_the_lanes_beside_it(finished, tmp_path):
    dataset, _ = finished
    alone = runner.run(
        tiny_digits(num_tasks=4, num_seeds=1, first_seed=1), tmp_path, MAKE_PROBLEM
    )
    xr.testing.assert_allclose(
        alone.drop_vars(TIMES).squeeze("seed"), dataset.drop_vars(TIMES).sel(seed=1)
    )


@pytest.mark.parametrize(
    "stop_at", [3, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 4, 6))]
)
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch, stop_at):
    """Stops by SIGTERM after so many of the eight tasks of both cases."""
    dataset, _ = finished
    config = tiny_digits(num_tasks=4, checkpoint_every=100)
    run_task, calls = CompiledCase.run_task, []

    def counted(self, state, task):
        calls.append(task)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_task(self, state, task)

    monkeypatch.setattr(CompiledCase, "run_task", counted)
    with pytest.raises(runner.Interrupted, match="continues from there"):
        runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert len(calls) == stop_at
    resumed = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert len(calls) == 8
    xr.testing.assert_equal(resumed.drop_vars(TIMES), dataset.drop_vars(TIMES))


def test_a_killed_run_goes_on_from_its_last_checkpoint(finished, tmp_path, monkeypatch):
    """Dies without notice in the middle of a task, after a checkpoint at task 2."""
    dataset, _ = finished
    config = tiny_digits(num_tasks=4, checkpoint_every=2)
    resumed, calls = run_dying_once(
        config, tmp_path / "run", MAKE_PROBLEM, monkeypatch, at_call=4
    )
    assert calls[4:6] == [2, 3]
    xr.testing.assert_equal(resumed.drop_vars(TIMES), dataset.drop_vars(TIMES))


def test_a_finished_run_is_shown_again_without_training(finished, monkeypatch):
    dataset, folder = finished
    monkeypatch.setattr(
        CompiledCase, "run_task", lambda *_: pytest.fail("trained again")
    )
    config = tiny_digits(num_tasks=4, checkpoint_every=1)
    again = runner.run(config, folder, MAKE_PROBLEM)
    xr.testing.assert_identical(again, dataset)


def test_a_folder_of_another_config_is_refused_with_the_difference(finished):
    dataset, folder = finished
    with pytest.raises(RunFolderError, match=r"step_size: 0.03 -> 0.5") as error:
        runner.run(tiny_digits(num_tasks=4, step_size=0.5), folder, MAKE_PROBLEM)
    assert "--overwrite" in str(error.value)
    xr.testing.assert_identical(run_results.load(folder), dataset)


def test_a_run_of_another_version_is_refused(finished, tmp_path):
    config = tiny_digits(num_tasks=1)
    runner.run(config, tmp_path, MAKE_PROBLEM)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(cbp_jax.__version__, "0.0.7", 1))
    with pytest.raises(RunFolderError, match=r"cbp_jax: 0\.0\.7 -> "):
        runner.run(config, tmp_path, MAKE_PROBLEM)


def test_a_folder_that_holds_no_run_is_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="contains no run"):
            runner.run(tiny_digits(), tmp_path, MAKE_PROBLEM, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow
def test_overwrite_starts_anew(finished, tmp_path):
    runner.run(tiny_digits(num_tasks=1), tmp_path, MAKE_PROBLEM)
    config = tiny_digits(num_tasks=2)
    dataset = runner.run(config, tmp_path, MAKE_PROBLEM, overwrite=True)
    assert dataset.sizes["task"] == 2
    np.testing.assert_array_equal(dataset.loss, finished[0].loss.sel(task=[0, 1]))


def test_a_lane_that_diverges_is_nan_and_leaves_the_others_alone(tmp_path):
    config = tiny_digits(
        num_tasks=3, activation="linear", cases={"backprop": {"method": "backprop"}}
    )
    config.sweep.step_size = (0.03, 0.01)
    healthy = runner.run(config, tmp_path / "healthy", MAKE_PROBLEM)
    config.sweep.step_size = (0.03, 1e30)
    mixed = runner.run(config, tmp_path / "mixed", MAKE_PROBLEM)
    diverged = mixed.sel(step_size=1e30)
    assert diverged.accuracy.isnull().all()
    xr.testing.assert_equal(
        mixed.sel(step_size=0.03).drop_vars(TIMES),
        healthy.sel(step_size=0.03).drop_vars(TIMES),
    )


def test_mistakes_show_before_anything_is_written(tmp_path):
    config = tiny_digits(cases={"good": {}, "bad": {"activation": "rleu"}})
    with pytest.raises(ValueError, match="rleu"):
        runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert not (tmp_path / "run").exists()

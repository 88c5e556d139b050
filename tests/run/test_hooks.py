"""Hooks: what they see, what they cannot disturb, and how they stop a run."""

import re
import sys
import types

import jax
import numpy as np
import pytest
from tiny_runs import one_lane, tiny_digits
import xarray as xr

from experiments import permuted_mnist
from experiments.learning.checks import ConfigError
from experiments.reporting import run_results
from experiments.run import command_line, run_config
from experiments.run.config import complete, make_cases
from experiments.run.hooks import HookError, load_hook

TIMES = ["steps_per_second"]


def tiny(**overrides):
    overrides = {"rank_every": 0} | overrides
    return tiny_digits(cases={"backprop": {"method": "backprop"}}, **overrides)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A run without hooks."""
    config = tiny()
    config.sweep.step_size = (0.1, 0.25)
    folder = tmp_path_factory.mktemp("hooks") / "quiet"
    return config, run_config(config, "permuted_mnist", folder)


def test_a_run_from_python_is_the_run_of_the_command(quiet, tmp_path):
    config, dataset = quiet
    run = command_line.train(config, tmp_path / "run", permuted_mnist.make_problem)
    assert run == 0
    xr.testing.assert_identical(
        dataset.drop_vars(TIMES), run_results.load(tmp_path / "run").drop_vars(TIMES)
    )


def test_hooks_see_all_results_and_cannot_change_them(quiet, tmp_path):
    config, wanted = quiet
    seen = []

    def hook(result):
        seen.append((result.case, result.task, result.metrics["accuracy"].copy()))
        assert result.layers == ("dense_0", "head")
        assert result.metrics["weight_magnitude"].shape == (2, 2, 2)
        np.testing.assert_array_equal(result.coordinates["step_size"], [0.1, 0.25])
        for array in (*result.metrics.values(), *result.coordinates.values()):
            array[:] = 0

    found = run_config(config, "permuted_mnist", tmp_path / "run", hooks=[hook])
    xr.testing.assert_identical(found.drop_vars(TIMES), wanted.drop_vars(TIMES))
    assert [(case, task) for case, task, _ in seen] == [
        ("backprop", 0),
        ("backprop", 1),
    ]
    for _, task, accuracy in seen:
        np.testing.assert_array_equal(
            accuracy, wanted.accuracy.sel(case="backprop", task=task)
        )


@pytest.mark.parametrize("failing", [0, 1])
def test_a_hook_that_fails_stops_the_run_after_it_is_saved(quiet, tmp_path, failing):
    config, wanted = quiet
    closed = []

    class Fails:
        def __call__(self, result):
            if result.task == failing:
                raise ZeroDivisionError("no seeds")

        def close(self):
            closed.append(True)

    with pytest.raises(
        HookError, match=rf"hook Fails raised Zero.* task {failing} of .*: no seeds\. "
    ):
        run_config(config, "permuted_mnist", tmp_path, hooks=[Fails()])
    assert closed == [True]
    saved = run_results.load(tmp_path)
    assert saved.accuracy.sel(task=failing).notnull().all()
    found = run_config(config, "permuted_mnist", tmp_path)
    xr.testing.assert_identical(found.drop_vars(TIMES), wanted.drop_vars(TIMES))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [(print, "pass a list"), (["x"], "'x', which is not callable")],
)
def test_what_is_no_hook_is_refused_before_a_run(tmp_path, hooks, message):
    with pytest.raises(ConfigError, match=message):
        run_config(tiny_digits(), "permuted_mnist", tmp_path / "run", hooks=hooks)
    assert not (tmp_path / "run").exists()


def test_a_flag_names_a_hook(tmp_path, monkeypatch, capsys):
    module = types.ModuleType("my_hooks")
    module.tasks = []
    module.note = lambda result: module.tasks.append(result.task)
    monkeypatch.setitem(sys.modules, "my_hooks", module)
    make_problem = permuted_mnist.make_problem
    assert (
        command_line.train(tiny(), tmp_path, make_problem, hooks=["my_hooks:note"]) == 0
    )
    assert module.tasks == [0, 1]
    status = command_line.train(tiny(), tmp_path, make_problem, hooks=["my_hooks:nte"])
    assert status == 1
    assert "--hook=my_hooks:nte cannot be imported" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="which is not callable"):
        load_hook("my_hooks:tasks")


def test_an_unknown_problem_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no problem 'permuted'.*permuted_mnist"):
        run_config(tiny(), "permuted", tmp_path)


class FakeWandb(types.ModuleType):
    """Notes what is logged, as the package of this name would upload it."""

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.settings, self.finished = {}, {}, []

    def init(self, **settings):
        name = settings["name"]
        self.settings[name] = settings
        logged = self.logged.setdefault(name, {})
        return types.SimpleNamespace(
            log=lambda numbers, step: logged.update({step: numbers}),
            finish=lambda: self.finished.append(name),
        )


def test_weights_and_biases_has_a_run_for_each_setting(quiet, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config, wanted = quiet
    config = config.copy_and_resolve_references()
    config.wandb = True
    run_config(config, "permuted_mnist", tmp_path)
    names = ["backprop, step_size 0.1", "backprop, step_size 0.25"]
    assert list(fake.logged) == fake.finished == names
    for name, size in zip(names, (0.1, 0.25), strict=True):
        accuracy = wanted.accuracy.sel(case="backprop", step_size=size).mean("seed")
        for task, logged in fake.logged[name].items():
            assert logged["accuracy"] == pytest.approx(accuracy.sel(task=task).item())
            assert "dead_units/dense_0" in logged
        assert list(fake.logged[name]) == [0, 1]
    settings = fake.settings[names[0]]
    assert settings["project"] == "cbp_jax"
    assert settings["group"] == str(tmp_path)
    assert settings["config"]["case"] == "backprop"


@pytest.mark.parametrize("package", ["wandb", "tensorboardX"])
def test_a_missing_package_is_named_before_anything_runs(
    package, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    extra = package.lower().rstrip("x")
    folder = tmp_path / "run"
    with pytest.raises(ImportError, match=rf"pip install '\.\[{extra}\]'"):
        run_config(tiny(**{extra: True}), "permuted_mnist", folder)
    assert not folder.exists()


def test_the_parts_of_a_task_have_names_in_profiles():
    config = make_cases(complete(tiny()))["backprop"]
    problem = permuted_mnist.make_problem(config)
    hyperparameters, key = one_lane(config)
    state = problem.learner.init(hyperparameters, key)
    task = jax.jit(
        lambda state, data: problem.run_task(hyperparameters, state, key, 0, data)
    )
    text = task.lower(state, problem.data).as_text(debug_info=True)
    for scope in ("stream", "measures", "gradient", "optimizer", "apply"):
        assert re.search(rf'["/]{scope}/', text), scope


@pytest.mark.slow
def test_a_profile_of_the_second_task_is_part_of_the_run(tmp_path, capsys):
    folder = tmp_path / "run"
    run_config(tiny(), "permuted_mnist", folder, profile=True)
    printed = capsys.readouterr().out
    assert "Profile of task 1 of case 'backprop'" in printed
    (path,) = (folder / "profile" / "backprop").glob("plugins/profile/*/perfetto*")
    assert str(path) in printed
    assert path.stat().st_size > 0
    run_config(tiny(), "permuted_mnist", folder, overwrite=True)
    assert not (folder / "profile").exists()

"""Warm starts: what warm and cold learners share, and what sets them apart."""

import jax
import numpy as np
import pytest
from tiny_runs import run_dying_once, tiny_warm_start
import xarray as xr

from configs import warm_start as presets
from experiments import warm_start
from experiments.run import cases, runner
from experiments.run.config import complete, make_cases
from experiments.streams import datasets

MAKE_PROBLEM = warm_start.make_problem
PRESETS = ("default", "growing", "mnist", "cifar100", "smoke")
UPDATES = 4  # Of a task; phases begin with tasks 0, 1 and 3.
WARM = {"method": "backprop"}
COLD = WARM | {"start": "cold"}


def compile_case(fields, **config):
    """The only case of a tiny config, compiled for its two lanes."""
    config = complete(tiny_warm_start(cases={"one": fields}, **config))
    (case,) = cases.prepare_cases(config, MAKE_PROBLEM)
    return case, cases.CompiledCase(case, 1)


def run(program, tasks, state=None):
    """The state before and after each task, without the lanes' keys, and measures."""
    state = program.start(None) if state is None else state
    states, measured = [program.fetch(state)], []
    for task in tasks:
        state, found, _ = program.run_task(state, task)
        states.append(program.fetch(state))
        measured.append(found)
    return states, measured


def assert_equal(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


@pytest.fixture(scope="module")
def warm():
    return compile_case(WARM)


@pytest.fixture(scope="module")
def cold():
    return compile_case(COLD)


def test_a_cold_learner_has_the_first_weights_and_the_batches_of_a_warm_one(warm, cold):
    """Bit for bit: its phase is what a warm learner does from its initial state."""
    cold_states, cold_measures = run(cold[1], range(4))
    warm_states, warm_measures = run(warm[1], range(4))
    assert_equal(cold_states[:2], warm_states[:2])
    assert_equal(cold_measures[0], warm_measures[0])
    fresh_states, fresh_measures = run(warm[1], (1, 2))
    assert_equal(cold_states[2:4], fresh_states[1:])
    assert_equal(cold_measures[1:3], fresh_measures)
    fresh_states, fresh_measures = run(warm[1], (3,))
    assert_equal(cold_states[4], fresh_states[1])
    assert_equal(cold_measures[3], fresh_measures[0])
    assert (cold_measures[3]["loss"] != warm_measures[3]["loss"]).all()


def test_each_phase_has_the_same_updates_warm_and_cold(warm, cold):
    for (case, program), wanted in (
        (warm, [4, 8, 12, 16]),
        (cold, [4, 4, 8, 4]),
    ):
        assert case.problem.updates_per_task == UPDATES
        state, found = program.start(None), []
        for task in range(4):
            state, *_ = program.run_task(state, task)
            found.append(int(state.learner.num_updates[0]))
        assert found == wanted


def test_accuracies_are_those_of_the_network_after_the_task(warm):
    """On 597 test images, and on the 40 of the task; in float64."""
    case, program = warm
    state = program.start(None)
    for task in range(2):
        state, measured, _ = program.run_task(state, task)
    digits = datasets.load("digits")
    images = digits.images.reshape(-1, 64) / 16
    params = jax.tree.map(lambda leaf: np.float64(leaf[1]), state.learner.params)
    hidden = images @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
    outputs = np.maximum(hidden, 0) @ params["head"]["kernel"] + params["head"]["bias"]
    is_correct = np.argmax(outputs, axis=1) == digits.labels
    np.testing.assert_allclose(measured["accuracy"][1], is_correct[1200:].mean())

    key = jax.random.fold_in(jax.random.key(np.uint32(1)), 1)  # Purpose: the stream.
    order = warm_start.growing_data.draw_order(case.config, key, 1, 1200)
    np.testing.assert_allclose(
        measured["train_accuracy"][1], is_correct[np.asarray(order)].mean()
    )


@pytest.mark.slow
def test_methods_act_at_the_end_of_each_phase_but_the_last():
    """With steps of 0, halving is all that changes the weights."""
    halving = {"method": "shrink_and_perturb_events", "shrink": 0.5, "perturb": 0.0}
    still = {"step_size": 0.0}
    for fields, factors in (
        (halving, [1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        (halving | {"start": "cold"}, [1] * 6),
    ):
        states, _ = run(compile_case(fields | still)[1], range(5))
        for name, first in states[0].items():
            if "params" in name and "kernel" in name:
                for state, factor in zip(states, factors, strict=True):
                    np.testing.assert_allclose(state[name], factor * first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all four phases' tasks, its config and its folder."""
    config = tiny_warm_start(checkpoint_every=1, replacement_log=20)
    config.cases = {
        "backprop": WARM,
        "backprop_cold": COLD,
        "cbp_cold": {"method": "continual_backprop", "start": "cold"},
    }
    config.replacement_rate, config.maturity_threshold = 0.5, 1
    folder = tmp_path_factory.mktemp("run") / "run"
    return runner.run(config, folder, MAKE_PROBLEM), config, folder


@pytest.mark.slow
def test_the_log_of_a_cold_start_counts_from_the_start_of_its_task(finished):
    _, _, folder = finished
    log = np.genfromtxt(
        folder / "replacements.csv", delimiter=",", names=True, dtype=None
    )
    assert set(log["task"]) == {0, 1, 2, 3}
    assert log["step"].min() >= 0
    assert log["step"].max() < UPDATES


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    whole, config, _ = finished
    resumed, _ = run_dying_once(
        config, tmp_path / "run", MAKE_PROBLEM, monkeypatch, at_call=4
    )
    times = ["steps_per_second"]
    xr.testing.assert_equal(resumed.drop_vars(times), whole.drop_vars(times))


@pytest.mark.slow
def test_a_lane_alone_is_what_it_is_among_others(finished, tmp_path):
    whole, config, _ = finished
    config = config.copy_and_resolve_references()
    config.first_seed, config.num_seeds = 1, 1
    alone = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    for name in ("accuracy", "train_accuracy", "loss", "weight_magnitude"):
        np.testing.assert_allclose(alone[name], whole[name].sel(seed=[1]), rtol=1e-6)


@pytest.mark.parametrize(
    "preset", [*PRESETS, pytest.param("methods", marks=pytest.mark.slow)]
)
def test_every_preset_is_whole(preset, monkeypatch):
    """At full size, up to the data that it wants, of which there are 100 images."""
    shape = (32, 32, 3) if preset == "cifar100" else (28, 28, 1)
    images = datasets.ImageDataset(
        "", np.zeros((100, *shape), np.uint8), np.zeros(100, np.int32), 10, 255.0
    )
    config = complete(presets.get_config(preset))
    if config.dataset != "digits":
        monkeypatch.setattr(datasets, "load", lambda *_: images)
    for case in make_cases(config).values():
        problem = MAKE_PROBLEM(case)
        assert problem.examples_per_task == case.examples_per_task
        starts = warm_start.growing_data.phase_starts(case)
        assert starts[-1] < case.num_tasks
        assert case.shares[-1] == 1


def test_an_unknown_start_is_named():
    config = complete(tiny_warm_start(start="hot"))
    with pytest.raises(ValueError, match=r"start must be one of \['warm', 'cold'\]"):
        MAKE_PROBLEM(config)

"""Sweeps: one program for all lanes, each lane what it is alone."""

import jax
import numpy as np
import pytest
from tiny_runs import tiny_digits
import xarray as xr

from experiments import permuted_mnist
from experiments.run import blocks, cases, runner
from experiments.run.cases import CompiledCase

MAKE_PROBLEM = permuted_mnist.make_problem
ONLY_CONTINUAL = {"continual_backprop": {"method": "continual_backprop"}}
SWEEP = {"step_size": (0.01, 0.03, 0.1), "replacement_rate": (0.001, 0.02)}


def sweep_config(**overrides):
    config = tiny_digits(
        cases=ONLY_CONTINUAL,
        num_seeds=5,
        num_tasks=3,
        maturity_threshold=5,
        **overrides,
    )
    config.sweep.update(SWEEP)
    return config


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Results of 30 lanes, and the names of the functions lowered for compilation."""
    lowered = []

    def listen(event, duration, **metadata):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(metadata["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    dataset = runner.run(
        sweep_config(), tmp_path_factory.mktemp("runs") / "swept", MAKE_PROBLEM
    )
    return dataset, tuple(lowered)


def test_a_sweep_is_one_compiled_program(swept):
    dataset, lowered = swept
    assert dataset.accuracy.shape == (1, 3, 2, 5, 3)
    assert sum("run_task" in name for name in lowered) == 1


def test_every_lane_equals_its_solo_run(swept):
    """Thirty lanes alone on one device, all by one more compilation."""
    dataset, _ = swept
    config = sweep_config()
    (case,) = cases.prepare_cases(config, MAKE_PROBLEM)
    run_lane = jax.jit(cases._run_lane(case.config, case.problem))
    init_lane = jax.jit(cases._init_lane(case.config, case.problem))
    solo = []
    for index in range(case.num_lanes):
        lane = jax.tree.map(lambda leaf, index=index: leaf[index], case.grid.lanes)
        state, curve = init_lane(lane), []
        for task in range(3):
            state, metrics, _ = run_lane(state, lane, np.int32(task), case.problem.data)
            curve.append(np.asarray(metrics["loss"]))
        solo.append(curve)
    together = dataset.loss.values.reshape(30, 3)
    np.testing.assert_allclose(together, np.array(solo), rtol=1e-5)
    assert len(np.unique(together[:, -1])) == 30


def test_a_swept_replacement_rate_replaces_more(swept):
    dataset, _ = swept
    magnitude = dataset.weight_magnitude.sel(layer="head", task=2)
    # A reborn unit has no outgoing weights, so replacing more makes the head smaller.
    rare, often = (magnitude.sel(replacement_rate=rate) for rate in (0.001, 0.02))
    assert (often.mean() < rare.mean()).all()


@pytest.mark.slow
@pytest.mark.parametrize("block", [2, 8])
def test_lanes_per_block_only_change_the_rounding(swept, tmp_path, block):
    dataset, _ = swept
    config = sweep_config(lanes_per_block=block)
    blocked = runner.run(config, tmp_path, MAKE_PROBLEM)
    np.testing.assert_allclose(blocked.loss, dataset.loss, rtol=1e-4)


@pytest.mark.slow
def test_the_zeros_of_swept_rivals_are_backprop(tmp_path):
    config = tiny_digits(cases={"backprop": {"method": "backprop"}}, num_tasks=1)
    plain = runner.run(config, tmp_path / "plain", MAKE_PROBLEM)
    rivals = {
        "weight_decay": 0.1,
        "noise_scale": 0.1,
        "dropout_rate": 0.5,
        "momentum": 0.9,
    }
    config.sweep.update({name: (0.0, value) for name, value in rivals.items()})
    swept = runner.run(config, tmp_path / "swept", MAKE_PROBLEM)
    off = dict.fromkeys(rivals, 0.0)
    np.testing.assert_allclose(swept.loss.sel(off), plain.loss, rtol=1e-5)
    for name, value in rivals.items():
        on = swept.loss.sel(off | {name: value}).values
        assert (abs(on - plain.loss.values) > 1e-4).all(), name


@pytest.mark.slow
def test_adam_sweeps_its_betas(tmp_path):
    config = tiny_digits(
        optimizer="adam", step_size=0.01, num_tasks=2, cases=ONLY_CONTINUAL
    )
    config.sweep.b1, config.sweep.b2 = (0.5, 0.9), (0.9, 0.999)
    dataset = runner.run(config, tmp_path, MAKE_PROBLEM)
    assert dataset.loss.sizes["b1"] == dataset.loss.sizes["b2"] == 2
    last = dataset.loss.sel(seed=0, task=1).values
    assert len(np.unique(last)) == 4
    assert (last < np.log(10) * 1.2).all()


def test_the_fastest_block_is_measured_where_it_is_worth_it(monkeypatch, capsys):
    (case,) = cases.prepare_cases(sweep_config(), MAKE_PROBLEM)
    assert blocks.choose_block(case, MAKE_PROBLEM) == 1
    monkeypatch.setattr(blocks, "_UPDATES_WORTH_MEASURING", 0)
    speeds = {1: 10.0, 8: 30.0}
    monkeypatch.setattr(
        blocks, "_updates_per_second", lambda case, make_problem, block: speeds[block]
    )
    assert blocks.choose_block(case, MAKE_PROBLEM) == 8
    printed = capsys.readouterr()
    assert "--config.lanes_per_block=8" in printed.out + printed.err
    case.config.lanes_per_block = 3
    assert blocks.choose_block(case, MAKE_PROBLEM) == 3


def test_the_probe_is_timed_with_the_lanes_of_the_case():
    config = sweep_config()
    config.timed_task.update(examples_per_task=30, measured_examples=10)
    (case,) = cases.prepare_cases(config, MAKE_PROBLEM)
    assert blocks._updates_per_second(case, MAKE_PROBLEM, 1) > 0
    assert case.config.examples_per_task == 40


@pytest.mark.parametrize(
    ("limit", "expected"), [(1e9, 100), (100, 25), (30, 4), (1, 1)]
)
def test_a_sweep_too_large_for_the_memory_runs_in_blocks(limit, expected):
    def memory_needed(block):
        return 10 + 3 * block

    assert blocks.fit_block(memory_needed, 100, limit) == expected


@pytest.mark.slow
def test_memory_needed_grows_with_the_lanes_of_a_block():
    (case,) = cases.prepare_cases(sweep_config(), MAKE_PROBLEM)
    one, eight = (CompiledCase(case, block).memory_needed() for block in (1, 8))
    params = 4 * (64 * 5 + 5 + 5 * 10 + 10)
    # Each lane adds at least its params and gradients.
    assert eight - one >= 7 * 2 * params


def test_results_do_not_depend_on_the_devices(swept, tmp_path, monkeypatch):
    dataset, _ = swept
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one_device)
    alone = runner.run(sweep_config(), tmp_path, MAKE_PROBLEM)
    ignored = ["steps_per_second"]
    xr.testing.assert_equal(alone.drop_vars(ignored), dataset.drop_vars(ignored))

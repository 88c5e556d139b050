"""The regression problem: its target, its drift, its learner, presets and figure."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from tiny_runs import one_lane
import xarray as xr

from configs import pmnist, scr
from experiments import (
    cases,
    configuration,
    drifting_bits,
    figures,
    linear_threshold,
    program,
    results,
    runner,
    slowly_changing_regression,
)
from experiments.learners import STREAM

MAKE_PROBLEM = slowly_changing_regression.make_problem
TRACE = pathlib.Path(__file__).parent / "traces" / "ltu_target.npz"
PRESETS = ("default", "figure_b10", "cbp", "adam", "all_bits", "smoke")


def tiny(**overrides):
    """A config whose 40 examples a bin touch drift periods of 15 unevenly."""
    config = scr.get_config("smoke")
    shrink(config)
    for field, value in overrides.items():
        config[field] = value
    return config


def shrink(config):
    """Shrinks any preset to the same tiny programs."""
    config.num_seeds, config.num_tasks, config.examples_per_task = 2, 2, 40
    config.measured_examples, config.drift_every, config.drift = 20, 15, "one"
    config.optimizer, config.step_size = "sgd", 0.01
    config.sweep.update(dict.fromkeys(config.sweep, ()))
    distinct = {}
    for name, case in config.cases.items():
        if "activation" in case:
            case.activation = config.activation
        distinct.setdefault(case.to_json(), name)
    config.cases = {name: config.cases[name].to_dict() for name in distinct.values()}


@functools.cache
def compiled_draw(config):
    """Compiles the stream of a config in JSON: `(seed, task) -> Examples`."""
    config = ConfigDict(json.loads(config))
    return jax.jit(
        lambda seed, task: drifting_bits.draw_task(config, jax.random.key(seed), task)
    )


def draw_tasks(config, seed, num_tasks):
    """Bits [tasks x T, M] and targets [tasks x T] of the first tasks of a seed."""
    draw = compiled_draw(configuration.to_json(config))
    drawn = [draw(jnp.uint32(seed), jnp.int32(task)) for task in range(num_tasks)]
    words = np.concatenate([examples.words for examples in drawn])
    targets = np.concatenate([examples.targets for examples in drawn])
    bits = words[:, None] >> np.arange(32, dtype=np.uint32) & 1
    assert not bits[:, config.num_bits :].any()
    return bits[:, : config.num_bits].astype(np.int64), targets


# The target.


def test_target_reproduces_the_released_code_exactly():
    """The trace's biases are the weights of the constant bit."""
    trace = np.load(TRACE)
    weights = jnp.concatenate([trace["w0"], trace["b0"][None]])
    thresholds = linear_threshold.unit_thresholds(weights, float(trace["beta"]))
    np.testing.assert_allclose(thresholds, trace["tau"], atol=1e-6)
    network = linear_threshold.LinearThresholdNetwork(
        weights, thresholds, trace["w1"][:, 0], trace["b1"][0]
    )
    bits = np.concatenate([trace["x"], np.ones((len(trace["x"]), 1), "float32")], 1)
    outputs = linear_threshold.network_outputs(network, jnp.asarray(bits))
    np.testing.assert_array_equal(outputs, trace["y"][:, 0])


def test_drawn_targets_are_signs_and_differ_between_keys():
    networks = [
        linear_threshold.draw_network(jax.random.key(seed), 21, 100, 0.7)
        for seed in (0, 1)
    ]
    for weights, thresholds, output_weights, output_bias in networks:
        assert weights.shape == (21, 100)
        for signs in (weights, output_weights, output_bias):
            np.testing.assert_array_equal(np.abs(signs), 1)
        # 2,100 fair coins: 4 standard deviations are 0.09.
        assert abs(float(weights.mean())) < 0.09
        assert abs(float(output_weights.mean())) < 0.4
        np.testing.assert_array_equal(
            thresholds, linear_threshold.unit_thresholds(weights, 0.7)
        )
    assert (networks[0].weights != networks[1].weights).mean() > 0.4


def test_targets_are_those_of_the_network_of_the_lane():
    """The table of a drift period gives what the network gives for each example."""
    config = tiny()
    for seed in (0, 3):
        bits, targets = draw_tasks(config, seed, 4)
        key = jax.random.fold_in(jax.random.key(jnp.uint32(seed)), STREAM)
        network = linear_threshold.draw_network(
            jax.random.split(key, 3)[0], 21, 100, 0.7
        )
        expected = linear_threshold.network_outputs(network, jnp.asarray(bits, "f4"))
        np.testing.assert_array_equal(targets, expected)
        assert len(np.unique(targets)) > 3


# The stream.


def test_one_slow_bit_flips_at_every_period_and_never_between():
    config = tiny()
    bits, _ = draw_tasks(config, 0, 150)
    changed = bits[1:, :15] != bits[:-1, :15]
    period_ends = np.arange(1, len(bits)) % 15 == 0
    np.testing.assert_array_equal(changed.sum(axis=1), period_ends)
    flips = changed.sum(axis=0)
    assert flips.sum() == 399
    # Chi-squared of 14 degrees of freedom: 99.99 % lie below 43.
    assert ((flips - 399 / 15) ** 2 / (399 / 15)).sum() < 43


def test_the_paper_flips_one_bit_every_10_000_examples():
    config = scr.get_config("figure_b10")
    bits, _ = draw_tasks(config, 7, 3)
    assert bits.shape == (120_000, 21)
    assert bits[:, 20].all()
    changed = (bits[1:, :15] != bits[:-1, :15]).sum(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed) + 1, np.arange(1, 12) * 10**4)
    assert changed.max() == 1


def test_drift_of_all_bits_redraws_them_at_every_period():
    config = tiny(drift="all")
    bits, _ = draw_tasks(config, 0, 50)
    changed = (bits[1:, :15] != bits[:-1, :15]).sum(axis=1)
    period_ends = np.arange(1, len(bits)) % 15 == 0
    assert not changed[~period_ends].any()
    assert bits[:, 20].all()
    assert 6.5 < changed[period_ends].mean() < 8.5
    assert abs(bits[:, :15].mean() - 0.5) < 0.06


def test_fast_bits_are_fair_and_new_for_every_example_and_bin():
    bits, _ = draw_tasks(tiny(), 0, 100)
    fast = bits[:, 15:20] @ (1 << np.arange(5))
    counts = np.bincount(fast, minlength=32)
    # Chi-squared of 31 degrees of freedom: 99.98 % lie between 8 and 68.
    assert 8 < ((counts - 125) ** 2 / 125).sum() < 68
    # Four standard deviations of 4,000 chances of 1 / 32 are 0.011.
    for distance in range(1, 42):
        same = (fast[distance:] == fast[:-distance]).mean()
        assert abs(same - 1 / 32) < 0.011


def test_lanes_see_streams_of_their_seed_that_follow_from_the_bin_alone():
    config = tiny()
    bits, targets = draw_tasks(config, 1, 6)
    # Bin 5 without the bins before it.
    _, last = compiled_draw(configuration.to_json(config))(jnp.uint32(1), jnp.int32(5))
    np.testing.assert_array_equal(last, targets[-40:])
    other_bits, other_targets = draw_tasks(config, 2, 6)
    assert (bits != other_bits).any()
    assert (targets != other_targets).mean() > 0.4
    # The drift does not know of bins.
    longer, _ = draw_tasks(tiny(examples_per_task=60), 1, 4)
    np.testing.assert_array_equal(bits[:, :15], longer[:, :15])


@pytest.mark.parametrize(("num_bits", "slow_bits"), [(32, 31), (16, 5)])
def test_other_numbers_of_bits(num_bits, slow_bits):
    bits, targets = draw_tasks(tiny(num_bits=num_bits, slow_bits=slow_bits), 0, 3)
    assert bits.shape == (120, num_bits)
    assert bits[:, -1].all()
    changed = (bits[1:, :slow_bits] != bits[:-1, :slow_bits]).sum(axis=1)
    np.testing.assert_array_equal(changed, np.arange(1, 120) % 15 == 0)
    assert np.isfinite(targets).all()


# The learner.


def run_bin(task=0, **case):
    """Runs one bin of two lanes: the learner, and of the first lane the rest."""
    step_size = case.pop("step_size", 0.01)
    config = tiny(cases={"only": case})
    config.sweep.step_size = (step_size,)  # So that 0 compiles no program of its own.
    (prepared,) = cases.prepare_cases(config, MAKE_PROBLEM)
    program = cases.Program(prepared, 1)
    state = program.start(None)
    before = jax.tree.map(lambda leaf: np.array(leaf[0]), state.learner.params)
    state, measured, _ = program.run_task(state, task)
    after = jax.tree.map(lambda leaf: np.array(leaf[0]), state.learner.params)
    first = {name: values[0] for name, values in measured.items()}
    return prepared.problem.learner, before, after, first


def test_error_is_the_mean_square_before_updates_on_all_but_the_constant_bit():
    learner, params, _, measured = run_bin(3, method="backprop", step_size=0.0)
    bits, targets = draw_tasks(tiny(), 0, 4)
    inputs, targets = jnp.asarray(bits[-40:, :20], "f4"), targets[-40:]
    hidden = learner.features(params, inputs)["dense_0"]
    outputs = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    error = ((np.asarray(outputs)[:, 0] - targets) ** 2).mean()
    np.testing.assert_allclose(measured["error"], error, rtol=1e-5)
    np.testing.assert_array_equal(measured["loss"], measured["error"])
    dead = (np.asarray(hidden)[:20] == 0).all(axis=0).mean()
    np.testing.assert_allclose(measured["dead_units"][0], dead)


def test_linear_baseline_follows_the_gradient_of_the_squared_error():
    """By hand, without a factor 1/2: w <- w - 2 step (w x + b - y) x."""
    learner, params, new_params, measured = run_bin(method="backprop", hidden_layers=0)
    bits, targets = draw_tasks(tiny(), 0, 1)
    kernel = params["head"]["kernel"].astype(float)[:, 0]
    bias, errors = 0.0, []
    for x, y in zip(bits[:, :20], targets, strict=True):
        difference = kernel @ x + bias - y
        errors.append(difference**2)
        kernel = kernel - 2 * 0.01 * difference * x
        bias = bias - 2 * 0.01 * difference
    assert learner.layers == ("head",)
    np.testing.assert_allclose(measured["error"], np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(
        new_params["head"]["kernel"][:, 0], kernel, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(new_params["head"]["bias"], bias, rtol=1e-4)


def test_two_methods_of_a_seed_see_the_same_examples():
    """Learners that do not learn have equal errors only on equal examples."""
    backprop, continual = [
        run_bin(2, method=method, step_size=0.0)[3]["error"]
        for method in ("backprop", "continual_backprop")
    ]
    np.testing.assert_allclose(backprop, continual, rtol=1e-6)


def test_initial_weights_have_the_gain_of_the_activation():
    """sqrt(3 / 20) times the gain bounds 100 weights; their largest comes close."""
    for activation, gain in {"tanh": 5 / 3, "sigmoid": 1, "swish": 2**0.5}.items():
        problem = MAKE_PROBLEM(tiny(activation=activation))
        state = problem.learner.init(*one_lane(tiny()))
        largest = np.abs(state.params["dense_0"]["kernel"]).max()
        assert 0.9 < largest / (gain * (3 / 20) ** 0.5) <= 1
        assert not state.params["dense_0"]["bias"].any()


# The config.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "rleu"}, "leaky_relu.*'rleu'"),
        ({"drift": "two"}, r"config.drift must be one of \['one', 'all'\], got 'two'"),
        ({"slow_bits": 25}, r"config.slow_bits must be below config.num_bits \(21\)"),
        ({"slow_bits": 21}, "got 21"),
        ({"slow_bits": 0}, "config.slow_bits must be at least 1"),
        ({"slow_bits": 5}, "leave 15 bits"),
        ({"num_bits": 33}, "config.num_bits must be at most 32, got 33"),
        ({"drift_every": 0}, "config.drift_every must be at least 1"),
        ({"target_units": 0}, "config.target_units"),
        ({"measured_examples": 41}, "measured_examples must be from 1 to"),
        ({"rank_method": "svdd"}, "gram"),
        ({"hidden_layers": -1}, "hidden_layers must be at least 0"),
        ({"hidden_layers": 0}, "no units to replace"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        MAKE_PROBLEM(tiny(method="continual_backprop", **fields))


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="figure_b11") as error:
        scr.get_config("figure_b11")
    assert all(preset in str(error.value) for preset in PRESETS)


def test_both_problems_state_the_same_fields_of_learner_and_run():
    of_images = {"dataset", "data_dir", "sampling"}
    of_bits = {"num_bits", "slow_bits", "drift", "drift_every"}
    of_bits |= {"target_units", "target_beta"}
    common = set(pmnist.get_config()) - of_images
    assert set(scr.get_config()) == common | of_bits


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_whole_and_divides_its_examples(preset):
    """At full size and with the preset's own learners, up to compilation."""
    config = scr.get_config(preset)
    prepared = cases.prepare_cases(config, MAKE_PROBLEM)
    assert [case.name for case in prepared] == list(configuration.make_cases(config))
    examples = {case.config.num_tasks * case.steps_per_task for case in prepared}
    lanes = prepared[0].num_lanes
    total = {"all_bits": 1_000_000, "smoke": 400}.get(preset, 3_000_000)
    assert examples == {total * lanes}
    assert lanes == {"default": 30, "cbp": 600, "smoke": 2}.get(preset, 300)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_with_tiny_settings(preset, tmp_path, capsys):
    config = scr.get_config(preset)
    shrink(config)
    folder = tmp_path / "run"
    assert program.train(config, folder, MAKE_PROBLEM) == 0
    dataset = results.load(folder)
    assert list(dataset.case.values) == list(config.cases)
    for variable in ("error", "loss"):
        assert dataset[variable].dims == ("case", "seed", "task")
        assert dataset[variable].notnull().all()
    for variable in ("dead_units", "effective_rank", "stable_rank", "weight_magnitude"):
        assert dataset[variable].dims == ("case", "seed", "task", "layer")
    np.testing.assert_array_equal(dataset.examples[0], [40, 80])
    assert "figures/learning.png" in capsys.readouterr().out
    assert (folder / "figures" / "learning.png").stat().st_size > 0


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = tiny(num_tasks=3, checkpoint_every=1)
    whole = runner.run(config, tmp_path / "whole", MAKE_PROBLEM)
    run_task, calls = cases.Program.run_task, []

    def die(self, state, task):
        calls.append(task)
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return run_task(self, state, task)

    monkeypatch.setattr(cases.Program, "run_task", die)
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    resumed = runner.run(config, tmp_path / "run", MAKE_PROBLEM)
    assert calls[4:6] == [1, 1]
    xr.testing.assert_equal(resumed.error, whole.error)
    xr.testing.assert_equal(resumed.weight_magnitude, whole.weight_magnitude)


# The figure.


def make_results(**errors):
    """Results of two step sizes x two seeds; a seed adds 0.1, a bin 0.01."""
    fields = {
        "backprop_relu": {"activation": "relu", "hidden_layers": 1},
        "continual_backprop_relu": {"activation": "relu", "hidden_layers": 1},
        "tanh": {"activation": "tanh", "hidden_layers": 1},
        "linear": {"activation": "relu", "hidden_layers": 0},
    }
    coordinates = {"step_size": np.array([0.1, 0.2]), "seed": np.array([0, 1])}
    offsets = np.array([0.0, 0.1, 0.5, 0.6])[:, None] + 0.01 * np.arange(3)
    made = [
        results.case_dataset(
            name,
            coordinates,
            ("dense_0", "head"),
            {"error": offsets + error},
            {"num_weights": [100, 5], "num_units": [5, 0]},
            examples_per_task=40_000,
            steps_per_task=40_000,
            steps_per_second=1.0,
            lanes_per_block=4,
        )
        for name, error in errors.items()
    ]
    config = {
        "activation": "relu",
        "hidden_layers": 1,
        "cases": {name: fields[name] for name in errors},
    }
    return results.join_cases(made, {"config": json.dumps(config)})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open."""
    kept = []

    def keep(figure, folder):
        kept.append(figure)
        return folder / "learning.png"

    monkeypatch.setattr(figures, "_save", keep)
    return kept


def test_one_panel_per_activation_and_the_best_linear_model_dashed(drawn, tmp_path):
    dataset = make_results(backprop_relu=1, continual_backprop_relu=2, tanh=3, linear=4)
    figures.draw_errors(dataset, tmp_path)
    relu, tanh = drawn[0].axes
    assert [relu.get_title(), tanh.get_title()] == ["relu", "tanh"]
    assert [line.get_label() for line in relu.lines] == [
        *("backprop relu, step size 0.1", "backprop relu, step size 0.2"),
        "continual backprop relu, step size 0.1",
        "continual backprop relu, step size 0.2",
        "linear",
    ]
    assert [line.get_label() for line in tanh.lines] == [
        *("step size 0.1", "step size 0.2", "linear")
    ]
    for axis in (relu, tanh):
        linear = axis.lines[-1]
        assert linear.get_linestyle() == "--"
        np.testing.assert_allclose(linear.get_ydata(), [4.05, 4.06, 4.07])
    np.testing.assert_allclose(tanh.lines[1].get_ydata(), [3.55, 3.56, 3.57])
    np.testing.assert_allclose(tanh.lines[1].get_xdata(), [0.04, 0.08, 0.12])
    # Two seeds 0.1 apart: the standard error of their mean is 0.05.
    low, high = tanh.collections[1].get_paths()[0].get_extents().get_points()[:, 1]
    np.testing.assert_allclose([low, high], [3.50, 3.62], rtol=1e-6)


def test_a_linear_model_alone_has_its_panel_and_nothing_finite_no_figure(
    drawn, tmp_path
):
    dataset = make_results(linear=1)
    figures.draw_errors(dataset, tmp_path)
    (axis,) = drawn[0].axes
    assert axis.get_title() == "linear"
    assert len(axis.lines) == 2
    dataset["error"] = dataset.error * np.nan
    assert figures.draw_errors(dataset, tmp_path) == []


def test_a_run_of_a_regression_is_drawn_as_errors_also_with_diverged_lanes(tmp_path):
    dataset = make_results(tanh=1, linear=2)
    dataset["error"].loc[{"case": "tanh", "step_size": 0.1}] = np.nan
    dataset["error"].loc[{"case": "tanh", "step_size": 0.2, "seed": 1}] = np.nan
    (path,) = figures.draw_run(dataset, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")

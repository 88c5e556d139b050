"""The regression problem: its learner, its presets and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import draw_bits, one_lane, run_dying_once, shrink_bits, tiny_bits
import xarray as xr

from configs import pmnist, scr
from experiments import slowly_changing_regression
from experiments.reporting import run_results
from experiments.run import cases, command_line, runner
from experiments.run.config import complete, make_cases

MAKE_PROBLEM = slowly_changing_regression.make_problem
PRESETS = ("default", "figure_b10", "cbp", "adam", "all_bits", "smoke")


def run_bin(task=0, **case):
    """Runs one bin of two lanes: the learner, and of the first lane the rest."""
    step_size = case.pop("step_size", 0.01)
    config = tiny_bits(cases={"only": case})
    config.sweep.step_size = (step_size,)  # So that 0 compiles no program of its own.
    (prepared,) = cases.prepare_cases(config, MAKE_PROBLEM)
    program = cases.CompiledCase(prepared, 1)
    state = program.start(None)
    before = jax.tree.map(lambda leaf: np.array(leaf[0]), state.learner.params)
    state, measured, _ = program.run_task(state, task)
    after = jax.tree.map(lambda leaf: np.array(leaf[0]), state.learner.params)
    first = {name: values[0] for name, values in measured.items()}
    return prepared.problem.learner, before, after, first


def test_error_is_the_mean_square_before_updates_on_all_but_the_constant_bit():
    _, params, _, measured = run_bin(3, method="backprop", step_size=0.0)
    bits, targets = draw_bits(tiny_bits(), 0, 4)
    inputs, targets = jnp.asarray(bits[-40:, :20], "f4"), targets[-40:]
    hidden = inputs @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
    hidden = jnp.maximum(hidden, 0)
    outputs = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    error = ((np.asarray(outputs)[:, 0] - targets) ** 2).mean()
    np.testing.assert_allclose(measured["error"], error, rtol=1e-5)
    np.testing.assert_array_equal(measured["loss"], measured["error"])
    dead = (np.asarray(hidden)[:20] == 0).all(axis=0).mean()
    np.testing.assert_allclose(measured["dead_units"][0], dead)


def test_linear_baseline_follows_the_gradient_of_the_squared_error():
    """By hand, without a factor 1/2: w <- w - 2 step (w x + b - y) x."""
    learner, params, new_params, measured = run_bin(method="backprop", hidden_layers=0)
    bits, targets = draw_bits(tiny_bits(), 0, 1)
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


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Each activation and its derivative, written out.
BY_HAND = {
    "relu": (lambda z: z * (z > 0), lambda z: 1.0 * (z > 0)),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, 0.01 * z),
        lambda z: np.where(z > 0, 1, 0.01),
    ),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "elu": (lambda z: np.where(z > 0, z, np.exp(z) - 1), lambda z: np.exp(z * (z < 0))),
    "swish": (
        lambda z: z * sigmoid(z),
        lambda z: sigmoid(z) + z * sigmoid(z) * sigmoid(-z),
    ),
}


@pytest.mark.parametrize("activation", BY_HAND)
def test_each_activation_learns_as_backprop_by_hand(activation):
    """Forty steps at a large step size, against NumPy in float64."""
    config = tiny_bits(method="backprop", activation=activation, step_size=0.03)
    learner = MAKE_PROBLEM(config).learner
    hyperparameters, key = one_lane(config)
    bits, targets = draw_bits(config, 0, 1)
    bits = bits[:, :20].astype(np.float32)

    def step(state, example):
        bits, target = example
        state, _, loss = learner.step(hyperparameters, state, bits[None], target[None])
        return state, loss

    state = learner.init(hyperparameters, key)
    new_state, losses = jax.jit(lambda *given: jax.lax.scan(step, *given))(
        state, (bits, targets)
    )
    function, slope = BY_HAND[activation]
    params = jax.tree.map(lambda leaf: np.array(leaf, float), state.params)
    (w, b), (v, c) = [(params[at]["kernel"], params[at]["bias"]) for at in params]
    for x, y, loss in zip(bits, targets, losses, strict=True):
        z = x @ w + b
        difference = function(z) @ v[:, 0] + c[0] - y
        np.testing.assert_allclose(loss, difference**2, rtol=1e-3, atol=1e-5)
        signal = 2 * 0.03 * difference
        at_units = signal * v[:, 0] * slope(z)
        v, c = v - signal * function(z)[:, None], c - signal
        w, b = w - np.outer(x, at_units), b - at_units
    learned = new_state.params
    np.testing.assert_allclose(learned["dense_0"]["kernel"], w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(learned["head"]["kernel"], v, rtol=1e-3, atol=1e-4)


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
        problem = MAKE_PROBLEM(tiny_bits(activation=activation))
        state = problem.learner.init(*one_lane(tiny_bits()))
        largest = np.abs(state.params["dense_0"]["kernel"]).max()
        assert 0.9 < largest / (gain * (3 / 20) ** 0.5) <= 1
        assert not state.params["dense_0"]["bias"].any()


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
        ({"hidden_layers": 0}, "needs hidden units"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        MAKE_PROBLEM(tiny_bits(method="continual_backprop", **fields))


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="figure_b11") as error:
        scr.get_config("figure_b11")
    assert all(preset in str(error.value) for preset in PRESETS)


def test_both_problems_state_the_same_fields_of_learner_and_run():
    of_images = {"dataset", "data_dir", "sampling"}
    of_images |= {"change_fraction", "transition", "recurrent"}
    of_bits = {"num_bits", "slow_bits", "drift", "drift_every"}
    of_bits |= {"target_units", "target_beta"}
    common = set(complete(pmnist.get_config())) - of_images
    assert set(complete(scr.get_config())) == common | of_bits


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_whole_and_divides_its_examples(preset):
    """At full size and with the preset's own learners, up to compilation."""
    config = scr.get_config(preset)
    prepared = cases.prepare_cases(config, MAKE_PROBLEM)
    assert [case.name for case in prepared] == list(make_cases(config))
    examples = {
        case.config.num_tasks * case.updates_per_task_all_lanes for case in prepared
    }
    lanes = prepared[0].num_lanes
    total = {"all_bits": 1_000_000, "smoke": 400}.get(preset, 3_000_000)
    assert examples == {total * lanes}
    assert lanes == {"default": 30, "cbp": 600, "smoke": 2}.get(preset, 300)


@pytest.mark.parametrize(
    "preset",
    [
        *("default", "smoke"),
        *(
            pytest.param(preset, marks=pytest.mark.slow)
            for preset in PRESETS
            if preset not in ("default", "smoke")
        ),
    ],
)
def test_every_preset_runs_with_tiny_settings(preset, tmp_path, capsys):
    config = scr.get_config(preset)
    shrink_bits(config)
    folder = tmp_path / "run"
    assert command_line.train(config, folder, MAKE_PROBLEM) == 0
    dataset = run_results.load(folder)
    assert list(dataset.case.values) == list(config.cases)
    for variable in ("error", "loss"):
        assert dataset[variable].dims == ("case", "seed", "task")
        assert dataset[variable].notnull().all()
    for variable in ("dead_units", "effective_rank", "stable_rank", "weight_magnitude"):
        assert dataset[variable].dims == ("case", "seed", "task", "layer")
    np.testing.assert_array_equal(dataset.examples[0], [40, 80])
    assert "figures/learning.png" in capsys.readouterr().out
    assert (folder / "figures" / "learning.png").stat().st_size > 0


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = tiny_bits(num_tasks=3, checkpoint_every=1)
    whole = runner.run(config, tmp_path / "whole", MAKE_PROBLEM)
    resumed, calls = run_dying_once(
        config, tmp_path / "run", MAKE_PROBLEM, monkeypatch, at_call=5
    )
    assert calls[4:6] == [1, 1]
    xr.testing.assert_equal(resumed.error, whole.error)
    xr.testing.assert_equal(resumed.weight_magnitude, whole.weight_magnitude)

"""ReGraMa resets exactly the units of small gradient, and only when it checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

NUM_STEPS = 4
STEP_SIZE, MOMENTUM = 0.1, 0.5
PARAMS = tiny.make_params()
FEATURES = tiny.make_features(NUM_STEPS)


def make_grads():
    """Gradients of which those into some units are small, into one none at all."""
    grads = tiny.make_grads(NUM_STEPS, PARAMS)
    weak = {"dense_0": [1, 0.1, 0, 2, 0.02, 1], "dense_1": [0.1, 1, 1, 0.5, 3]}
    for name, factors in weak.items():
        grads[name]["kernel"] *= jnp.array(factors, jnp.float32)
    # At the first check the weakest unit gets a large gradient, for once.
    kernel = grads["dense_0"]["kernel"].at[1, :, 4].mul(100.0)
    return grads | {"dense_0": grads["dense_0"] | {"kernel": kernel}}


GRADS = make_grads()
SLOPES = jax.tree.map(lambda leaf: leaf[::-1] ** 3, FEATURES)


def make(base=None, **options):
    options = {"initializer": tiny.rows_initializer, "key": tiny.FAST_KEY} | options
    if base is None:
        base = optax.sgd(STEP_SIZE, momentum=MOMENTUM)
    return cbp_jax.regrama(base, tiny.UNITS, **options)


def run(tx):
    """Params and state after each update."""

    @jax.jit
    def step(params, state, grads, features, slopes):
        updates, state = tx.update(
            grads, state, params, features=features, feature_gradients=slopes
        )
        return optax.apply_updates(params, updates), state

    params, state, history = PARAMS, tx.init(PARAMS), []
    for index in range(NUM_STEPS):
        batch = tiny.at((GRADS, FEATURES, SLOPES), index)
        params, state = step(params, state, *batch)
        history.append(jax.device_get((params, state)))
    return history


def by_numpy(threshold, reset_every, over_interval, gradient):
    """Params and masks of reset units after each update, from the equations."""
    params = jax.tree.map(np.array, PARAMS)
    traces = jax.tree.map(np.zeros_like, params)
    totals, history = dict.fromkeys(tiny.WIDTHS, 0.0), []
    for index in range(NUM_STEPS):
        grads = jax.tree.map(lambda leaf, i=index: np.asarray(leaf[i]), GRADS)
        traces = jax.tree.map(lambda t, g: MOMENTUM * t + g, traces, grads)
        params = jax.tree.map(lambda p, t: p - STEP_SIZE * t, params, traces)
        is_due = (index + 1) % reset_every == 0
        masks = {}
        for name, width in tiny.WIDTHS.items():
            if gradient == "weights":
                magnitude = np.abs(grads[name]["kernel"]).mean(axis=0)
            else:
                magnitude = np.abs(np.asarray(SLOPES[name][index])).mean(axis=0)
            totals[name] = totals[name] * over_interval + magnitude
            mean = totals[name] / (reset_every if over_interval else 1)
            score = mean / (mean.mean() + 1e-8)
            masks[name] = (score <= threshold) & is_due & np.ones(width, bool)
            totals[name] = 0.0 if is_due else totals[name]
        for name, after in (("dense_0", "dense_1"), ("dense_1", "head")):
            mask, rows = masks[name], np.arange(len(params[name]["kernel"])) + 1
            for tree, fresh in ((params, rows / 10), (traces, 0 * rows)):
                tree[name]["kernel"][:, mask] = fresh[:, None]
                tree[name]["bias"][mask] = 0
                tree[after]["kernel"][mask] = 0
        history.append((jax.tree.map(np.copy, params), masks))
    return history


@pytest.mark.parametrize(
    ("threshold", "over_interval", "gradient"),
    [(0.3, False, "weights"), (0.3, True, "weights"), (0.5, False, "activations")],
)
def test_params_follow_the_equations(threshold, over_interval, gradient):
    options = {"reset_every": 2, "gradient": gradient, "over_interval": over_interval}
    wanted = by_numpy(threshold, **options)
    history = run(make(threshold=threshold, **options))
    numbers = []
    for (params, state), (expected, masks) in zip(history, wanted, strict=True):
        tiny.assert_close(params, expected)
        for name, width in tiny.WIDTHS.items():
            actual = tiny.mask_of(state.replaced[name], width)
            np.testing.assert_array_equal(actual, masks[name])
        numbers.append(sum(mask.sum() for mask in masks.values()))
    assert numbers[0] == numbers[2] == 0
    assert 0 < numbers[1] < 11 and 0 < numbers[3] < 11
    if gradient == "weights":
        # Its large gradient saves a unit that would else be reset, in a sum as well.
        assert not wanted[1][1]["dense_0"][4]
        assert wanted[3][1]["dense_0"][4] or not over_interval


def test_a_threshold_of_zero_takes_units_without_any_gradient():
    params, state = run(make(threshold=0.0, reset_every=1))[0]
    assert state.replaced["dense_0"].tolist() == [2, 6, 6, 6, 6, 6]
    assert state.num_replaced == {"dense_0": 1, "dense_1": 0}
    column = params["dense_0"]["kernel"][:, 2]
    np.testing.assert_allclose(column, [0.1, 0.2, 0.3, 0.4], rtol=1e-5)


def test_a_layer_without_any_gradient_is_reset_as_a_whole():
    tx = make(reset_every=1)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    features = tiny.at(FEATURES, 0)
    _, state = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS, features=features)
    assert state.num_replaced == {"dense_0": 6, "dense_1": 5}


def test_a_negative_threshold_is_the_base_optimizer_bit_for_bit():
    base = optax.sgd(STEP_SIZE, momentum=MOMENTUM)
    wanted = run(optax.with_extra_args_support(base))
    for (params, state), expected in zip(
        run(make(base, threshold=-1.0, reset_every=1)), wanted, strict=True
    ):
        tiny.assert_equal((params, state.base_state), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_every": 0}, r"reset_every must be in \[1, inf\], got 0"),
        ({"gradient": "biases"}, r"gradient must be one of \['weights', 'activations'"),
    ],
)
def test_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

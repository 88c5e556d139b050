"""Calibrated partial resets against their equations, written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

NUM_STEPS = 5
STEP_SIZE, MOMENTUM = 0.1, 0.5
NUMBERS = {
    "replacement_rate": 0.4,
    "sharpness": 4.0,
    "decay_rate": 0.5,
    "reset_every": 2,
}
DENSE = tiny.make_params()
CONV = tiny.make_conv_params()
CONV["head"] = {"kernel": jnp.sin(jnp.arange(24.0)).reshape(12, 2)}
CONV_UNITS = (
    cbp_jax.UnitGroup(
        *("conv", "conv/kernel", "conv/bias", "head/kernel"), norm_scale="norm/scale"
    ),
)
# Params, units, features, the consumer of each layer, and positions that it flattens.
NETWORKS = {
    "dense": (
        DENSE,
        tiny.UNITS,
        tiny.make_features(NUM_STEPS),
        {"dense_0": "dense_1", "dense_1": "head"},
        1,
    ),
    "convolution": (
        CONV,
        CONV_UNITS,
        {"conv": jnp.cos(jnp.arange(120.0)).reshape(NUM_STEPS, 2, 2, 2, 3)},
        {"conv": "head"},
        4,
    ),
}


def fresh_weights(shape):
    """Those of `tiny.rows_initializer`."""
    rows = (np.arange(shape[-2], dtype=np.float32) + 1) / 10
    return np.broadcast_to(rows[:, None], shape)


def make(units=tiny.UNITS, base=None, **options):
    options = {"initializer": tiny.rows_initializer, "key": tiny.FAST_KEY} | options
    if base is None:
        base = optax.sgd(STEP_SIZE, momentum=MOMENTUM)
    return cbp_jax.cpr(base, units, **(NUMBERS | options))


def run(tx, params, grads, features):
    """Params and state after each update; the gradient of features is their square."""

    @jax.jit
    def step(params, state, grads, features):
        slopes = jax.tree.map(jnp.square, features)
        updates, state = tx.update(
            grads, state, params, features=features, feature_gradients=slopes
        )
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for index in range(NUM_STEPS):
        batch = tiny.at((grads, features), index)
        params, state = step(params, state, *batch)
        history.append(jax.device_get((params, state)))
    return history


def by_numpy(network, grads, gradient):
    """Params, momentum, averages and fractions after each update."""
    params, _, features, consumers, positions = NETWORKS[network]
    rho, sharpness, decay, every = NUMBERS.values()
    params = jax.tree.map(np.array, params)
    traces = jax.tree.map(np.zeros_like, params)
    average, history = dict.fromkeys(consumers, 1.0), []
    for index in range(NUM_STEPS):
        now = jax.tree.map(lambda leaf, i=index: np.asarray(leaf[i]), grads)
        traces = jax.tree.map(lambda t, g: MOMENTUM * t + g, traces, now)
        params = jax.tree.map(lambda p, t: p - STEP_SIZE * t, params, traces)
        fractions = {}
        for name in consumers:
            of_weights = np.abs(now[name]["kernel"])
            of_features = np.square(np.asarray(features[name][index]))
            values = of_weights if gradient == "weights" else of_features
            magnitude = values.mean(axis=tuple(range(values.ndim - 1)))
            score = magnitude / (magnitude.mean() + 1e-8)
            average[name] = decay * average[name] + (1 - decay) * score
            sigmoid = 1 / (1 + np.exp(sharpness * (average[name] - 1)))
            is_due = (index + 1) % every == 0
            fractions[name] = rho * np.minimum(1, 2 * sigmoid) * is_due
            average[name] = np.ones_like(score) if is_due else average[name]
        for name, consumer in consumers.items():
            f, kernel = fractions[name], params[name]["kernel"]
            params[name]["kernel"] = (1 - f) * kernel + f * fresh_weights(kernel.shape)
            params[consumer]["kernel"] *= (1 - np.tile(f, positions))[:, None]
        history.append(
            jax.tree.map(np.copy, (params, traces, dict(average), fractions))
        )
    return history


@pytest.mark.parametrize(
    ("network", "gradient"),
    [("dense", "weights"), ("convolution", "weights"), ("convolution", "activations")],
)
def test_params_and_averages_follow_the_equations(network, gradient):
    """Biases, scales and momentum stay; nobody counts as replaced."""
    params, units, features, consumers, _ = NETWORKS[network]
    grads = tiny.make_grads(NUM_STEPS, params)
    history = run(make(units, gradient=gradient), params, grads, features)
    wanted = by_numpy(network, grads, gradient)
    for step, ((params, state), expected) in enumerate(
        zip(history, wanted, strict=True)
    ):
        new, traces, average, fractions = expected
        tiny.assert_close(params, new)
        tiny.assert_close(state.base_state[0].trace, traces)
        for name in consumers:
            own = state.units[name]
            np.testing.assert_allclose(own.score, average[name], rtol=1e-5)
            np.testing.assert_allclose(own.fraction, fractions[name], rtol=1e-4)
            np.testing.assert_array_equal(own.age, step + 1)
            assert state.num_replaced[name] == 0
            assert (state.replaced[name] == own.age.size).all()
    # Some units of each layer go by the whole rate, others by less.
    for name in consumers:
        found = wanted[1][3][name]
        assert found.max() == pytest.approx(0.4)
        assert 0 < found.min() < 0.35


def test_a_rate_of_zero_is_the_base_optimizer_bit_for_bit():
    params, units, features, *_ = NETWORKS["dense"]
    grads = tiny.make_grads(NUM_STEPS, params)
    base = optax.sgd(STEP_SIZE, momentum=MOMENTUM)
    wanted = run(optax.with_extra_args_support(base), params, grads, features)
    history = run(make(units, base, replacement_rate=0.0), params, grads, features)
    for (params, state), expected in zip(history, wanted, strict=True):
        tiny.assert_equal((params, state.base_state), expected)


def test_a_rate_of_one_without_sharpness_resets_every_unit():
    params, units, features, *_ = NETWORKS["dense"]
    grads = tiny.make_grads(NUM_STEPS, params)
    options = {"replacement_rate": 1.0, "sharpness": 0.0, "moments": "reset"}
    _, (params, state), *_ = run(
        make(units, biases="reset", **options), params, grads, features
    )
    assert state.num_replaced == tiny.WIDTHS
    tiny.assert_close(params["dense_0"]["kernel"], fresh_weights((4, 6)))
    tiny.assert_close(params["dense_1"]["kernel"], fresh_weights((6, 5)))
    np.testing.assert_array_equal(params["dense_1"]["bias"], 0)
    np.testing.assert_array_equal(params["head"]["kernel"], 0)
    np.testing.assert_array_equal(state.base_state[0].trace["head"]["kernel"], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replacement_rate": 1.5}, r"replacement_rate must be in \[0, 1\], got 1.5"),
        ({"sharpness": -1.0}, r"sharpness must be in \[0, inf\), got -1"),
        ({"decay_rate": 1.0}, r"decay_rate must be in \[0, 1\), got 1"),
        ({"reset_every": 0}, r"reset_every must be in \[1, inf\], got 0"),
        ({"gradient": "both"}, r"gradient must be one of \['weights', 'activations'"),
    ],
)
def test_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

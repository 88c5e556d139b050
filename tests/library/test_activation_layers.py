"""AID, smooth-leaky and learned slopes against the equations, and in networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.layers import (
    adalin,
    aid,
    prelu,
    randomized_smooth_leaky,
    smooth_leaky,
)
from cbp_jax.networks import ACTIVATION_LAYERS, MLP

INPUTS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
SLOPE = np.array([0.0, 0.25, -0.5, 1.0, 2.0], np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_evaluation_is_the_equation():
    found = jax.jit(
        lambda x: (
            aid(x, 0.7),
            smooth_leaky(x, 0.2, 1.5),
            randomized_smooth_leaky(x, 0.1, 0.5, 1.5),
            prelu(x, jnp.asarray(SLOPE)),
            adalin(x, jnp.asarray(SLOPE)),
            adalin(x, jnp.asarray(SLOPE), jax.nn.sigmoid, 0.25),
        )
    )(INPUTS)
    x = INPUTS.astype(np.float64)

    def smooth(slope):
        return slope * x + (1 - slope) * x * sigmoid(1.5 * x)

    def linear_part(derivative):
        return SLOPE * x * np.cos(np.pi / 2 * derivative)

    logistic = sigmoid(x)
    wanted = (
        np.where(x > 0, 0.7 * x, 0.3 * x),
        smooth(0.2),
        smooth(0.3),
        np.where(x > 0, x, SLOPE * x),
        np.tanh(x) + linear_part(1 - np.tanh(x) ** 2),
        logistic + linear_part(4 * logistic * (1 - logistic)),
    )
    for actual, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_through_the_gate():
    slope = jnp.float32(0.5)
    found = jax.vmap(jax.grad(lambda x: adalin(x, slope)))(INPUTS[0])
    derivative = 1 - np.tanh(INPUTS[0]) ** 2
    wanted = derivative + 0.5 * np.cos(np.pi / 2 * derivative)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_mean_of_aid_over_masks_is_its_evaluation():
    keys = jax.random.split(jax.random.key(0), 4000)
    masked = jax.jit(jax.vmap(lambda key: aid(jnp.asarray(INPUTS[:3]), 0.7, key)))(keys)
    is_whole = (masked == INPUTS[:3]) | (masked == 0)
    assert is_whole.all()
    # Through a linear head, too.
    head = np.array([1.0, -2.0, 0.5, 1.5, -1.0])
    mean, wanted = np.mean(masked, axis=0), aid(jnp.asarray(INPUTS[:3]), 0.7)
    np.testing.assert_allclose(mean, wanted, atol=0.05)
    np.testing.assert_allclose(mean @ head, wanted @ head, atol=0.1)
    # An input and its negative pass with probabilities that add up to 1.
    share = np.mean(masked != 0, axis=0)
    np.testing.assert_allclose(share, np.where(INPUTS[:3] > 0, 0.7, 0.3), atol=0.04)


def test_aid_at_1_is_relu_in_training_too():
    inputs = jnp.asarray(INPUTS)
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(aid(inputs, 1.0, key), jax.nn.relu(inputs))


def test_random_slopes_are_uniform_and_of_each_input():
    inputs = jnp.full((200, 100), -50.0)
    slopes = randomized_smooth_leaky(inputs, 0.2, 0.6, key=jax.random.key(0)) / -50
    assert slopes.min() >= 0.2 - 1e-6 and slopes.max() <= 0.6 + 1e-6
    np.testing.assert_allclose(slopes.mean(), 0.4, atol=0.005)
    np.testing.assert_allclose(slopes.std(), 0.4 / np.sqrt(12), rtol=0.02)
    assert abs(np.corrcoef(slopes[0], slopes[1])[0, 1]) < 0.3


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "aid" else pytest.mark.slow)
        for name in ACTIVATION_LAYERS
    ],
)
def test_a_network_is_random_only_with_a_key(name):
    network = MLP((3, 4), 2, name)
    params = network.init(jax.random.key(0), INPUTS)["params"]

    @jax.jit
    def outputs(key):
        variables = {"params": params}
        with_key = network.apply(variables, INPUTS, train=True, activation_key=key)
        return network.apply(variables, INPUTS)[0], with_key[0]

    (first, with_one), (second, with_other) = map(
        outputs, jax.random.split(jax.random.key(1))
    )
    np.testing.assert_array_equal(first, second)
    is_random = ACTIVATION_LAYERS[name].is_random
    assert np.array_equal(with_one, with_other) != is_random
    assert np.array_equal(with_one, first) != is_random


def test_layers_draw_masks_of_their_own():
    network = MLP((50, 50), 2, "aid", activation_options={"p": 0.5})
    params = network.init(jax.random.key(0), INPUTS)["params"]
    _, features = network.apply(
        {"params": params}, INPUTS, activation_key=jax.random.key(1)
    )
    zero = [np.ravel(features[layer] == 0) for layer in ("dense_0", "dense_1")]
    np.testing.assert_allclose(np.mean(zero, axis=1), 0.5, atol=0.05)
    assert abs(np.corrcoef(zero)[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["prelu", "adalin_tanh"])
def test_slopes_belong_to_their_units(name):
    network = MLP((3, 4), 2, name)
    params = network.init(jax.random.key(0), INPUTS)["params"]
    assert params["activation_1"]["slope"].shape == (4,)
    assert not np.any(params["activation_0"]["slope"])
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)

    def apply(params, inputs):
        return network.apply({"params": params}, inputs)[0]

    assert cbp_jax.infer_units(apply, params, INPUTS) == network.units()
    cbp_jax.check_units(apply, params, network.units(), INPUTS)
    without = [group._replace(slope=None) for group in network.units()]
    with pytest.raises(ValueError, match="activation_0/slope"):
        cbp_jax.check_units(apply, params, without, INPUTS)


def test_a_reborn_unit_has_the_slope_and_moments_of_a_new_one():
    network = MLP((4,), 2, "prelu")
    params = network.init(jax.random.key(0), INPUTS)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    (group,) = network.units()
    tx = cbp_jax.continual_backprop(
        optax.adam(0.01),
        [group._replace(slope_value=0.25)],
        replacement_rate=0.3,
        maturity_threshold=1,
        max_per_step=1,
        key=tiny.FAST_KEY,
    )

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry

            def loss(params):
                outputs, features = network.apply({"params": params}, INPUTS)
                return jnp.mean(outputs**2), features

            grads, features = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params, features=features)
            params = optax.apply_updates(params, updates)
            adam = state.base_state[0]
            seen = (
                *(params["activation_0"]["slope"], adam.mu["activation_0"]["slope"]),
                *(adam.nu["activation_0"]["slope"], state.replaced["dense_0"]),
            )
            return (params, state), seen

        return jax.lax.scan(step, (params, tx.init(params)), length=6)[1]

    slopes, mu, nu, replaced = map(np.asarray, train(params))
    assert 2 <= len(np.unique(replaced[replaced < 4])) <= 3
    for update in range(6):
        reborn = np.isin(np.arange(4), replaced[update])
        first = ~np.isin(np.arange(4), replaced[: update + 1])
        np.testing.assert_array_equal(slopes[update, reborn], np.float32(0.25))
        for moments in (mu, nu):
            assert not moments[update, reborn].any()
            assert moments[update, first].all()
        assert (slopes[update, first] > 0.26).all()


def test_aid_keeps_the_mean_square_of_relu():
    """Which is why it has the same gain."""
    inputs = jax.random.normal(jax.random.key(0), (100_000,))
    for p in (0.5, 0.9):
        outputs = aid(inputs, p, jax.random.key(1))
        np.testing.assert_allclose(jnp.mean(outputs**2), 0.5, rtol=0.03)


def test_only_a_unit_without_a_slope_is_dead():
    inputs = -jnp.abs(INPUTS)
    for outputs, wanted in (
        (jax.nn.relu(inputs), 1.0),
        (aid(inputs, 0.9), 0.0),
        (smooth_leaky(inputs), 0.0),
        (prelu(inputs, jnp.asarray(SLOPE)), 0.2),
        (adalin(inputs, jnp.asarray(SLOPE)), 0.0),
    ):
        np.testing.assert_allclose(cbp_jax.metrics.dead_units(outputs), wanted)

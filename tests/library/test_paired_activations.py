"""CReLU and deep Fourier features: one unit, two outputs.

Shapes: B batch, N units.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.layers import crelu, sin_cos
from cbp_jax.networks import MLP, ConvNet

B, WIDTHS = 6, {"dense_0": 5, "dense_1": 3}
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(B, 4)), jnp.float32)
PAIRS = {
    "crelu": lambda x: np.stack([np.maximum(x, 0), np.maximum(-x, 0)], -2),
    "sin_cos": lambda x: np.stack([np.sin(x), np.cos(x)], -2),
}


def make(activation):
    """Returns a network and random params, biases too."""
    network = MLP(tuple(WIDTHS.values()), 2, activation)
    shapes = jax.eval_shape(network.init, tiny.FAST_KEY, INPUTS)["params"]
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return network, jax.tree.map(draw, shapes)


@pytest.mark.parametrize("activation", PAIRS)
def test_a_forward_pass_by_hand(activation):
    network, params = make(activation)
    outputs, features = jax.jit(network.apply)({"params": params}, INPUTS)
    hidden = np.asarray(INPUTS)
    for name, width in WIDTHS.items():
        hidden = hidden @ params[name]["kernel"] + params[name]["bias"]
        hidden = PAIRS[activation](hidden)
        assert features[name].shape == (B, 2, width)
        np.testing.assert_allclose(features[name], hidden, rtol=1e-4, atol=1e-4)
        hidden = np.concatenate([hidden[:, 0], hidden[:, 1]], axis=-1)
    wanted = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-4)


def test_gradients():
    inputs = jnp.array([[2.0, -3.0, 0.5]])
    pairs = jax.jit(lambda x: (jax.jacobian(crelu)(x), jax.jacobian(sin_cos)(x)))
    crelus, sin_coss = (np.einsum("bpnbn->pn", jacobian) for jacobian in pairs(inputs))
    np.testing.assert_array_equal(crelus, [[1, 0, 1], [0, -1, 0]])
    wanted = [np.cos(inputs[0]), -np.sin(inputs[0])]
    np.testing.assert_allclose(sin_coss, wanted, rtol=1e-6)


@pytest.mark.parametrize("activation, wanted", [("crelu", 2.0), ("sin_cos", 1.0)])
def test_the_gain_keeps_the_mean_squares_of_what_is_activated(activation, wanted):
    network = MLP((400, 400), 400, activation)
    inputs = jax.random.normal(tiny.FAST_KEY, (50, 300))

    @jax.jit
    def mean_squares():
        variables = network.init(tiny.FAST_KEY, inputs)
        _, features = network.apply(variables, inputs)
        kernel = variables["params"]["dense_1"]["kernel"]
        hidden = features["dense_0"].reshape(50, 800) @ kernel
        return jnp.mean(hidden**2), jnp.mean(features["dense_1"] ** 2)

    # The fan-in of 800 with a gain of sqrt(2) makes it 2 x the mean square of the pair.
    np.testing.assert_allclose(mean_squares(), [wanted, wanted / 2], rtol=0.1)


def replace(activation, **options):
    """Returns params before and after an update that only replaces, and its state."""
    network, params = make(activation)
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        network.units(),
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
        **options,
    )

    @jax.jit
    def update(params):
        _, features = network.apply({"params": params}, INPUTS)
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(grads, tx.init(params), params, features=features)
        return optax.apply_updates(params, updates), state, features

    after, state, features = update(params)
    return network, params, after, state, jax.device_get(features)


@pytest.mark.parametrize("activation", PAIRS)
def test_both_rows_of_a_replaced_unit_are_zeroed_and_the_output_forgets_it(activation):
    network, before, after, state, _ = replace(activation, replacement_rate=0.4)
    readers = {"dense_0": "dense_1", "dense_1": "head"}
    apply = jax.jit(lambda params: network.apply({"params": params}, INPUTS)[0])
    outputs = np.asarray(apply(after))
    for name, reader in readers.items():
        reborn = tiny.mask_of(state.replaced[name], WIDTHS[name])
        assert 0 < reborn.sum() < len(reborn)
        rows = np.concatenate([reborn, reborn])
        old, new = before[reader]["kernel"], after[reader]["kernel"]
        # The columns of units of the next layer that were replaced too are fresh.
        stay = np.ones(new.shape[1], bool)
        if reader in WIDTHS:
            stay = ~tiny.mask_of(state.replaced[reader], WIDTHS[reader])
        np.testing.assert_array_equal(new[rows][:, stay], 0)
        np.testing.assert_array_equal(new[~rows][:, stay], old[~rows][:, stay])
        assert (old[rows] != 0).all()
    for name in WIDTHS:
        reborn = tiny.mask_of(state.replaced[name], WIDTHS[name])
        for unit in range(WIDTHS[name]):
            bias = after[name]["bias"].at[unit].add(0.7)
            other = apply({**after, name: {**after[name], "bias": bias}})
            assert (np.max(np.abs(other - outputs)) == 0) == reborn[unit]


@pytest.mark.parametrize("activation", PAIRS)
def test_the_utility_of_a_unit_is_the_mean_over_both_outputs(activation):
    _, params, _, state, features = replace(
        activation,
        replacement_rate=0.0,
        decay_rate=0.0,
        utility_fn=cbp_jax.utility.contribution,
    )
    for name, reader in (("dense_0", "dense_1"), ("dense_1", "head")):
        outgoing = np.abs(params[reader]["kernel"]).mean(1).reshape(2, -1)
        wanted = (np.abs(features[name]).mean(0) * outgoing).mean(0)
        np.testing.assert_allclose(state.units[name].utility, wanted, rtol=1e-5)


def test_measures_judge_a_unit_by_both_outputs():
    inputs = np.array([[1.0, -1, 0, 3], [2, -2, 0, -3], [1, -3, 0, 0], [4, -1, 0, 0]])
    features = crelu(jnp.asarray(inputs, jnp.float32))
    metrics = cbp_jax.metrics
    # Of the units only the third, whose input is always 0, is dead.
    assert features.shape == (4, 2, 4)
    assert metrics.dead_units(features) == 0.25
    assert metrics.dead_units(features.reshape(4, 8)) == 0.5
    # Mean |h| 1, 7/8, 0 and 6/8 over both outputs; their mean is 21/32.
    assert metrics.tau_dormant_units(features, 0.1) == 0.25
    assert metrics.tau_dormant_units(features, 1.2) == 0.5
    # Active on 4, 4, 0 and 2 of 8 outputs.
    assert metrics.dormant_units(features, 0.3) == 0.5


def test_a_convolutional_network_has_none():
    shapes = jax.ShapeDtypeStruct((2, 6, 6, 1), jnp.float32)
    network = ConvNet(2, "crelu", (4,), (3,), ())
    with pytest.raises(ValueError, match="ConvNet got activation 'crelu'"):
        jax.eval_shape(network.init, tiny.FAST_KEY, shapes)

"""The paper's networks: shapes, names, sizes and initial weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cbp_jax
from cbp_jax.networks import MLP, ConvNet

# This generator compiles faster than the default.
KEY = jax.random.key(0, impl="unsafe_rbg")


def initialize(network, *input_shape):
    return jax.jit(network.init)(KEY, jnp.zeros(input_shape))["params"]


def shapes_of(network, *input_shape):
    params = jax.eval_shape(network.init, KEY, jnp.zeros(input_shape))["params"]
    output, features = jax.eval_shape(
        network.apply, {"params": params}, jnp.zeros(input_shape)
    )
    return params, output, features


def number_of(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def check_units(network, features):
    assert [group.name for group in network.units()] == list(features)


def test_mlp_shapes():
    network = MLP((6, 5), 3)
    params, output, features = shapes_of(network, 7, 4)
    assert jax.tree.map(jnp.shape, params) == {
        "dense_0": {"kernel": (4, 6), "bias": (6,)},
        "dense_1": {"kernel": (6, 5), "bias": (5,)},
        "head": {"kernel": (5, 3), "bias": (3,)},
    }
    assert output.shape == (7, 3)
    assert jax.tree.map(jnp.shape, features) == {"dense_0": (7, 6), "dense_1": (7, 5)}
    check_units(network, features)


def test_the_papers_mlp_has_its_size():
    params, _, features = shapes_of(MLP((2000, 2000, 2000), 10), 1, 784)
    assert number_of(params) == 785 * 2000 + 2 * 2001 * 2000 + 2001 * 10
    assert {name: shape.shape for name, shape in features.items()} == {
        f"dense_{index}": (1, 2000) for index in range(3)
    }


def test_the_papers_mlp_starts_at_its_weight_magnitude():
    params = initialize(MLP((2000, 2000, 2000), 10), 1, 784)
    magnitude = float(cbp_jax.metrics.weight_magnitude(params))
    assert round(magnitude, 4) == 0.0300
    for layer in params.values():
        assert not np.asarray(layer["bias"]).any()


def test_mlp_weights_fill_their_bounds():
    network = MLP((60, 50), 40, "tanh")
    params = initialize(network, 1, 80)
    fan_ins = {"dense_0": (5 / 3, 80), "dense_1": (5 / 3, 60), "head": (1, 50)}
    for name, (gain, fan_in) in fan_ins.items():
        largest = np.abs(params[name]["kernel"]).max()
        assert largest == pytest.approx(gain * math.sqrt(3 / fan_in), rel=5e-3)
    fresh = network.initializer()(KEY, (80, 60), jnp.float32)
    assert np.abs(fresh).max() == pytest.approx(5 / 3 * math.sqrt(3 / 80), rel=5e-3)


def test_a_forward_pass_by_hand():
    network = MLP((2,), 1, "leaky_relu")
    params = {
        "dense_0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.0])},
        "head": {"kernel": jnp.array([[2.0], [10.0]]), "bias": jnp.array([0.25])},
    }
    output, features = network.apply({"params": params}, jnp.array([[1.0], [-1.0]]))
    hidden = [[1.5, -0.01], [-0.005, 1.0]]
    np.testing.assert_allclose(features["dense_0"], hidden, rtol=1e-6)
    np.testing.assert_allclose(output, [[3.15], [10.24]], rtol=1e-6)


def test_a_linear_model_has_no_units():
    network = MLP((), 3)
    params, output, features = shapes_of(network, 2, 4)
    assert jax.tree.map(jnp.shape, params) == {"head": {"kernel": (4, 3), "bias": (3,)}}
    assert output.shape == (2, 3)
    assert features == {}
    assert network.units() == ()


def test_the_papers_convnet():
    network = ConvNet()
    params, output, features = shapes_of(network, 5, 32, 32, 3)
    assert output.shape == (5, 2)
    assert jax.tree.map(jnp.shape, features) == {
        "conv_0": (5, 14, 14, 32),
        "conv_1": (5, 6, 6, 64),
        "conv_2": (5, 2, 2, 128),
        "dense_0": (5, 128),
        "dense_1": (5, 128),
    }
    check_units(network, features)
    layers = (
        75 * 32 + 32,
        288 * 64 + 64,
        576 * 128 + 128,
        513 * 128,
        129 * 128,
        129 * 2,
    )
    assert number_of(params) == sum(layers) == 177_218
    assert params["conv_0"]["kernel"].shape == (5, 5, 3, 32)
    assert params["dense_0"]["kernel"].shape == (512, 128)
    tx = cbp_jax.continual_backprop(optax.sgd(0.1), network.units(), key=KEY)
    state = jax.eval_shape(tx.init, params)
    widths = {name: unit.age.shape for name, unit in state.units.items()}
    assert widths == {name: shape.shape[-1:] for name, shape in features.items()}


def test_convnet_weights_and_biases_fill_their_bounds():
    network = ConvNet(20, conv_channels=(64,), conv_sizes=(3,), dense_units=())
    params = initialize(network, 1, 6, 6, 2)
    fan_ins = {"conv_0": 18, "head": 256}
    for name, fan_in in fan_ins.items():
        bound = 1 / math.sqrt(fan_in)
        kernel, bias = np.abs(params[name]["kernel"]), np.abs(params[name]["bias"])
        assert kernel.max() == pytest.approx(bound, rel=0.03)
        assert kernel.max() <= bound
        assert 0.3 * bound < bias.max() <= bound
    fresh = network.initializer()(KEY, (3, 3, 2, 64), jnp.float32)
    assert np.abs(fresh).max() == pytest.approx(1 / math.sqrt(18), rel=0.03)


def test_learned_slopes_of_a_convnet_are_of_its_channels():
    network = ConvNet(2, "prelu", (3, 4), (5, 3), (6,))
    params, _, features = shapes_of(network, 5, 16, 16, 3)
    slopes = [params[f"activation_{index}"]["slope"].shape for index in range(3)]
    assert slopes == [(3,), (4,), (6,)]
    for index, group in enumerate(network.units()):
        assert group.slope == f"activation_{index}/slope"
        assert features[group.name].shape[-1] == slopes[index][0]


def test_an_unknown_activation_is_named_with_the_choices():
    for network in (MLP((2,), 1, "rleu"), ConvNet(activation="rleu")):
        inputs = (1, 4) if isinstance(network, MLP) else (1, 32, 32, 3)
        with pytest.raises(ValueError, match="'leaky_relu', .*'aid', .*got 'rleu'"):
            shapes_of(network, *inputs)

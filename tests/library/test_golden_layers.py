"""Layers, networks, fresh weights and metrics, see `golden_numbers`."""

import functools

from flax.core import pop
from golden_numbers import Golden
import jax
import jax.numpy as jnp
from op_by_op import op_by_op
import pytest
import tiny

from cbp_jax import initializers, layers, metrics, networks

LAYERS = Golden("layers", __file__)
METRICS = Golden("metrics", __file__)
KEY = jax.random.key(7)
INPUTS = tiny.make_features()["dense_0"][0] * 2 + 1  # [2, 6]
IMAGES = jnp.sin(jnp.arange(2 * 12 * 12 * 3.0)).reshape(2, 12, 12, 3)


def gradient(layer, inputs):
    """Outputs, and the gradient of a sum of their squares that weighs each."""

    def loss(inputs):
        outputs = layer(inputs)
        weights = jnp.linspace(-1, 1, outputs.size).reshape(outputs.shape)
        return (weights * outputs**2).sum(), outputs

    gradient, outputs = jax.grad(loss, has_aux=True)(inputs)
    return {"outputs": outputs, "gradient": gradient}


def online_norm(guard):
    """Two batches, one after the other, with the state between."""
    module = layers.OnlineNorm(forward_decay=0.9, backward_decay=0.8, guard=guard)

    def run(inputs):
        state, params = pop(module.init(KEY, inputs), "params")

        def loss_fn(params, state, inputs):
            variables = {"params": params, **state}
            outputs, state = module.apply(variables, inputs, mutable=list(state))
            return (outputs**3).sum(), (state, outputs)

        step = layers.value_and_grad_with_state(loss_fn)
        for batch in (inputs, inputs[::-1] + 1):
            (_, outputs), grads, state = step(params, state, batch)
        return {"outputs": outputs, "gradient": grads, "state": state}

    return run


def convolve(images):
    kernel = jnp.cos(jnp.arange(3 * 3 * 3 * 2.0)).reshape(3, 3, 3, 2)
    layout = ("NHWC", "HWIO", "NHWC")
    return networks.patches_convolution(
        images, kernel, (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=layout
    )


LAYER_CASES = {
    **{
        f"OnlineNorm, guard {guard}": (online_norm(guard), INPUTS)
        for guard in ("layer_scaling", "clip", "none")
    },
    **{
        layer.__name__: (functools.partial(gradient, layer), INPUTS)
        for layer in (layers.crelu, layers.sin_cos, layers.layer_scaling)
    },
    "dropout": (
        lambda inputs: gradient(lambda x: layers.dropout(KEY, x, 0.4), inputs),
        INPUTS,
    ),
    "patches_convolution": (lambda images: gradient(convolve, images), IMAGES),
    "max_pool": (
        lambda images: gradient(lambda x: networks.max_pool(x, (2, 3)), images),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", LAYER_CASES)
def test_a_layer(name):
    function, inputs = LAYER_CASES[name]
    LAYERS.check(name, op_by_op(function)(inputs))


def network_of(normalization):
    return networks.MLP((5, 4), 3, normalization=normalization)


NORMALIZATIONS = ("none", *layers.NORMALIZATIONS)
CONV_NET = networks.ConvNet(
    3, conv_channels=(2, 3), conv_sizes=(3, 2), dense_units=(4,), convolution="patches"
)
NETWORK_CASES = {
    **{
        f"MLP, normalization {name}": (network_of(name), INPUTS)
        for name in NORMALIZATIONS
    },
    "ConvNet": (CONV_NET, IMAGES),
}


@pytest.mark.parametrize("name", NETWORK_CASES)
def test_a_new_network_and_its_outputs(name):
    network, inputs = NETWORK_CASES[name]

    def init_and_apply(key, inputs):
        variables = network.init(key, inputs)
        state = list(variables.keys() - {"params"})
        outputs, state = network.apply(variables, inputs, train=True, mutable=state)
        return variables["params"], outputs, state

    params, (outputs, features), state = op_by_op(init_and_apply)(KEY, inputs)
    LAYERS.check(
        name,
        {"params": params, "outputs": outputs, "features": features, "state": state},
    )


def test_fresh_weights():
    functions = {
        name: initializers.kaiming_uniform(name) for name in initializers.GAINS
    } | {"uniform_fan_in": initializers.uniform_fan_in()}
    draw = {
        name: lambda key, function=function: function(key, (3, 2), jnp.float32)
        for name, function in functions.items()
    }
    LAYERS.check(
        "fresh weights", {name: op_by_op(one)(KEY) for name, one in draw.items()}
    )


RANKS = ("effective_rank", "stable_rank", "approximate_rank", "numerical_rank")


def test_metrics():
    # Ranks above a threshold jump by 1: no singular value is near one.
    spread = jnp.cos(jnp.arange(48.0)).reshape(8, 6) + 0.3 * jnp.eye(8, 6)
    strength = jnp.array([1, 0.1, 1, 2, 0, -5])
    features = jax.nn.relu(spread * strength)

    def measure(features):
        found = {
            "dead_units": metrics.dead_units(features),
            "dormant_units": metrics.dormant_units(features, 0.4),
            "tau_dormant_units": metrics.tau_dormant_units(features, 0.2),
            "saturated_units": metrics.saturated_units(features, 0, 4, 0.1, 0.6),
        }
        for method in metrics.METHODS:
            found |= {
                f"{name} by {method}": getattr(metrics, name)(features, method=method)
                for name in RANKS
            }
            values = metrics.singular_values(features, method)
            found[f"singular values by {method}"] = jnp.maximum(values, 1e-3)
        found["weight_magnitude"] = metrics.weight_magnitude([features, features[0]])
        return found

    METRICS.check("features [8, 6]", op_by_op(measure)(features))


def test_each_entry_is_checked():
    LAYERS.check_names([*LAYER_CASES, *NETWORK_CASES, "fresh weights"])
    METRICS.check_names(["features [8, 6]"])

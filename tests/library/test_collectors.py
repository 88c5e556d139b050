"""Activations by group: those that a trace finds, and those that a network sows."""

import re

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_networks as nets
from tiny_networks import inputs, relu

from cbp_jax import UnitGroup, collect_features, infer_units, with_features
from cbp_jax.networks import MLP, ConvNet

X = inputs(4, 3)
UNITS = infer_units(nets.chain, nets.CHAIN, X)


def chain_features(params, x):
    first = relu(x @ params["a"] + params["a_bias"])
    return {"a": first, "b": relu(first @ params["b"] + params["b_bias"])}


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP((4, 5), 2, activation="sin_cos", normalization="layer"), (2, 3)),
        (ConvNet(2, "relu", (3, 4), (3, 3), (5,), "patches"), (2, 14, 14, 9)),
    ],
)
def test_features_are_those_that_the_projects_networks_return(network, shape):
    images = inputs(*shape)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: inputs(*leaf.shape), shapes)

    def apply(params, images):
        return network.apply({"params": params}, images)[0]

    forward = jax.jit(with_features(apply, network.units()))
    outputs, features = forward(variables["params"], images)
    wanted, wanted_features = jax.jit(network.apply)(variables, images)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)
    tiny.assert_close(features, wanted_features)


def checkpointed(params, x):
    @jax.checkpoint
    def hidden(params, x):
        return relu(jax.jit(lambda x: x @ params["a"] + params["a_bias"])(x))

    rest = jax.jit(
        lambda params, x: (
            relu(x @ params["b"] + params["b_bias"]) @ params["head"]
            + params["head_bias"]
        )
    )
    return rest(params, hidden(params, x))


@pytest.mark.parametrize(
    "apply",
    [nets.chain, checkpointed, jax.checkpoint(jax.jit(nets.chain))],
    ids=["plain", "calls", "nested calls"],
)
def test_features_inside_calls_under_grad_and_vmap(apply):
    forward = with_features(apply, UNITS)

    def loss_fn(params, x):
        outputs, features = forward(params, x)
        return jnp.sum(jnp.square(outputs)), features

    def wanted_loss_fn(params, x):
        return jnp.sum(jnp.square(nets.chain(params, x))), chain_features(params, x)

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), nets.CHAIN)

    def in_lanes(loss_fn):
        grad = jax.value_and_grad(loss_fn, has_aux=True)
        return jax.jit(jax.vmap(grad, in_axes=(0, None)))(lanes, X)

    tiny.assert_close(in_lanes(loss_fn), in_lanes(wanted_loss_fn))


def test_another_batch_size_is_traced_anew():
    forward = with_features(nets.chain, UNITS)
    tiny.assert_close(forward(nets.CHAIN, X[:2])[1], chain_features(nets.CHAIN, X[:2]))


def test_a_custom_derivative_is_kept():
    @jax.custom_vjp
    def doubled(x):
        return relu(x)

    doubled.defvjp(lambda x: (relu(x), x), lambda x, g: (2 * g,))

    def apply(params, x):
        return doubled(x @ params["a"]) @ params["b"]

    units = (UnitGroup("a", "a", None, "b"),)
    outputs, features = with_features(apply, units)(nets.CHAIN, X)
    np.testing.assert_allclose(features["a"], relu(X @ nets.CHAIN["a"]), rtol=1e-6)

    def loss_of(forward):
        return lambda params: jnp.sum(forward(params))

    forward = with_features(apply, units)
    grads = jax.grad(loss_of(lambda params: forward(params, X)[0]))(nets.CHAIN)
    wanted = jax.grad(loss_of(lambda params: apply(params, X)))(nets.CHAIN)
    tiny.assert_close(grads, wanted)
    # 2 times the gradient of a linear layer.
    ones = np.ones((4, 4)) @ np.asarray(nets.CHAIN["b"]).T
    np.testing.assert_allclose(grads["a"], 2 * X.T @ ones, rtol=1e-5)


def test_maps_before_they_are_flattened_with_the_channel_last():
    images = nets.IMAGES
    hidden = relu(nets.convolve(images, nets.POOLED["conv"]) + nets.POOLED["conv_bias"])
    wanted = hidden.reshape(2, 2, 2, 2, 2, 4).max((2, 4))
    units = infer_units(nets.pooled, nets.POOLED, images)
    features = with_features(nets.pooled, units)(nets.POOLED, images)[1]
    np.testing.assert_allclose(features["conv"], wanted, rtol=1e-5, atol=1e-6)

    # The same weights in the other layout, whose map is flattened channel by channel.
    params = {
        "conv": nets.POOLED["conv"].transpose(3, 2, 0, 1),
        "conv_bias": nets.POOLED["conv_bias"].reshape(4, 1, 1),
        "dense": nets.POOLED_CHANNELS_FIRST["dense"],
        "head": nets.POOLED_CHANNELS_FIRST["head"],
    }
    apply, images = nets.pooled_channels_first, images.transpose(0, 3, 1, 2)
    units = infer_units(apply, params, images)
    feature = with_features(apply, units)(params, images)[1]["conv"]
    np.testing.assert_allclose(
        feature.reshape(2, 4, 4), wanted.reshape(2, 4, 4), rtol=1e-5, atol=1e-6
    )


def test_a_map_that_is_flattened_before_its_activation():
    def apply(params, images):
        flat = nets.convolve(images, params["conv"]).reshape(2, -1)
        return relu(flat) @ params["wide"]

    params = nets.draw(conv=(3, 3, 2, 4), wide=(64, 3))
    units = infer_units(apply, params, nets.IMAGES)
    feature = with_features(apply, units)(params, nets.IMAGES)[1]["conv"]
    wanted = relu(nets.convolve(nets.IMAGES, params["conv"])).reshape(2, 16, 4)
    np.testing.assert_allclose(feature, wanted, rtol=1e-5, atol=1e-6)


def test_a_stream_gives_what_its_last_kernel_reads():
    stream = infer_units(nets.residual, nets.RESIDUAL, X)[:1]
    outputs, features = with_features(nets.residual, stream)(nets.RESIDUAL, X)
    np.testing.assert_allclose(
        features["stem"] @ nets.RESIDUAL["head"], outputs, rtol=1e-5, atol=1e-6
    )


def test_a_group_that_is_not_in_the_network_is_refused():
    wrong = (UnitGroup("a", "a", None, "head"),)
    with pytest.raises(ValueError, match="'a': found no value that .'a'. produce"):
        params = nets.draw(a=(3, 4), b=(4, 4), head=(4, 2))
        params |= {"a_bias": jnp.ones(4), "b_bias": jnp.ones(4), "head_bias": 0.0}
        with_features(nets.chain, wrong)(params, X)
    with pytest.raises(ValueError, match="'a'.* Give the inputs a batch axis"):
        with_features(nets.chain, UNITS)(nets.CHAIN, X[0])


class Sowing(nn.Module):
    """A layer that sows under the name of its group, and one that is a module."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(4, name="first")(x))
        self.sow("intermediates", "hidden", hidden)
        return nn.Dense(2, name="head")(Activated(name="second")(hidden))


class Activated(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(5, name="dense")(x))


def test_what_linen_sows_and_captures():
    shapes = jax.eval_shape(Sowing().init, jax.random.key(0), X)["params"]
    params = jax.tree.map(lambda leaf: inputs(*leaf.shape), shapes)
    _, state = Sowing().apply(
        {"params": params}, X, mutable=["intermediates"], capture_intermediates=True
    )
    features = collect_features(
        state["intermediates"], {"first": "hidden", "second/dense": "second"}
    )
    first = nn.relu(X @ params["first"]["kernel"] + params["first"]["bias"])
    dense = params["second"]["dense"]
    second = nn.relu(first @ dense["kernel"] + dense["bias"])
    tiny.assert_close(features, {"first": first, "second/dense": second})
    with pytest.raises(
        ValueError, match=re.escape("captured under 'third', only under")
    ):
        collect_features(state["intermediates"], ("third",))


def test_an_array_of_each_call_is_refused():
    captured = {"hidden": (X, X)}
    with pytest.raises(ValueError, match="several arrays .* one array per call"):
        collect_features(captured, ("hidden",))
    assert collect_features(captured, {"hidden": "hidden/1"})["hidden"] is X


def test_what_nnx_sows():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x):
            active = nnx.relu(self.hidden(x))
            self.sow(nnx.Intermediate, "active", active)
            return active

    model = Network(nnx.Rngs(0))
    outputs, captured = nnx.capture(model, nnx.Intermediate)(X)
    tiny.assert_close(collect_features(captured, {"h": "active"}), {"h": outputs})
    tiny.assert_close(collect_features(captured, ("active",)), {"active": outputs})
    _, captured = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(
        X
    )
    features = collect_features(captured, ("hidden",))
    tiny.assert_close(features, {"hidden": model.hidden(X)})

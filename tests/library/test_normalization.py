"""Networks with normalization: leaves, groups, forward passes, dropout.

Shapes: B batch, N units.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.layers import NORMALIZATIONS, dropout
from cbp_jax.networks import MLP, ConvNet

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 6, 6, 2)), jnp.float32)
KINDS = list(NORMALIZATIONS)
STATE = {
    "none": {},
    "layer": {},
    "rms": {},
    "batch": {"batch_stats": ("mean", "var")},
    "online": {"batch_stats": ("mean", "var"), "backward_stats": ("u", "v")},
}


def make_mlp(normalization):
    return MLP((5, 3), 2, "tanh", normalization)


def make_conv_net(normalization):
    return ConvNet(2, "relu", (4, 3), (3, 1), (5,), normalization=normalization)


NETWORKS = {
    "mlp": (make_mlp, INPUTS, {"dense_0": 5, "dense_1": 3}),
    "conv_net": (make_conv_net, IMAGES, {"conv_0": 4, "conv_1": 3, "dense_0": 5}),
}


def randomize(variables, seed=0):
    """Draws all leaves anew, positive, so that no parameter does nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype),
        variables,
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", STATE)
def test_leaves_and_groups_belong_together(network, kind):
    make, inputs, widths = NETWORKS[network]
    network = make(kind)
    variables = jax.eval_shape(network.init, tiny.FAST_KEY, inputs)
    params = variables.pop("params")
    has_shift = kind not in ("none", "rms")
    wanted = set()
    for index, name in enumerate(widths):
        wanted |= {f"{name}/kernel"} | (set() if has_shift else {f"{name}/bias"})
        wanted |= {f"norm_{index}/scale"} if kind != "none" else set()
        wanted |= {f"norm_{index}/bias"} if has_shift else set()
    shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape), (params, variables))
    assert set(tiny.by_path(shapes[0])) == wanted | {"head/kernel", "head/bias"}
    assert set(tiny.by_path(shapes[1])) == {
        f"{collection}/norm_{index}/{leaf}"
        for collection, leaves in STATE[kind].items()
        for index in range(len(widths))
        for leaf in leaves
    }

    groups = network.units()
    assert [group.name for group in groups] == list(widths)
    named = {path for group in groups for path in group if isinstance(path, str)}
    assert {path for path in named if "/" in path} == wanted | {
        "head/kernel",
        "head/bias",
    }
    tx = cbp_jax.continual_backprop(optax.sgd(0.1), groups, key=tiny.FAST_KEY)
    state = jax.eval_shape(tx.init, params)
    for group, width in zip(groups, widths.values(), strict=True):
        assert state.units[group.name].age.shape == (width,)
        found = {
            path: leaf.shape
            for path, leaf in tiny.by_path(shapes[1]).items()
            if path.rpartition("/")[0] in (group.statistics or ())
        }
        assert set(found.values()) <= {(width,)}
        assert len(found) == sum(map(len, STATE[kind].values()))


def normalized(kind, hidden):
    """What a newborn normalization makes of hidden activations in training."""
    hidden = np.asarray(hidden, np.float64)
    others = tuple(range(hidden.ndim - 1))
    if kind == "batch":
        return (hidden - hidden.mean(others)) / np.sqrt(hidden.var(others) + 1e-5)
    if kind == "layer":
        hidden = hidden - hidden.mean(-1, keepdims=True)
    size = np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
    return hidden / size


@pytest.mark.parametrize("kind", ["batch", "layer", "rms"])
def test_a_forward_pass_by_hand(kind):
    network = make_mlp(kind)
    variables = jax.eval_shape(network.init, tiny.FAST_KEY, INPUTS)
    variables = randomize(variables)
    apply = jax.jit(lambda v: network.apply(v, INPUTS, train=True, mutable=True))
    (outputs, features), _ = apply(variables)
    params, hidden = jax.device_get(variables["params"]), np.asarray(INPUTS)
    for index in range(2):
        layer, norm = params[f"dense_{index}"], params[f"norm_{index}"]
        assert ("bias" in layer) == (kind == "rms")
        hidden = normalized(kind, hidden @ layer["kernel"] + layer.get("bias", 0))
        hidden = np.tanh(hidden * norm["scale"] + norm.get("bias", 0))
        np.testing.assert_allclose(features[f"dense_{index}"], hidden, atol=1e-4)
    head = params["head"]
    np.testing.assert_allclose(
        outputs, hidden @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_maps_are_convolved_normalized_activated_and_pooled(kind):
    network = ConvNet(2, "tanh", (4,), (3,), (), normalization=kind)
    variables = randomize(jax.eval_shape(network.init, tiny.FAST_KEY, IMAGES))

    @jax.jit
    def apply(variables):
        kernel = variables["params"]["conv_0"]["kernel"]
        maps = jax.lax.conv_general_dilated(
            IMAGES, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return maps, network.apply(variables, IMAGES, train=True, mutable=True)

    maps, ((_, features), state) = jax.device_get(apply(variables))
    norm = variables["params"]["norm_0"]
    hidden = np.tanh(normalized(kind, maps) * norm["scale"] + norm["bias"])
    pooled = hidden.reshape(3, 2, 2, 2, 2, 4).max((2, 4))
    np.testing.assert_allclose(features["conv_0"], pooled, atol=1e-4)
    if kind == "batch":
        old, new = (tree["batch_stats"]["norm_0"] for tree in (variables, state))
        for name, moment in (
            ("mean", maps.mean((0, 1, 2))),
            ("var", maps.var((0, 1, 2))),
        ):
            wanted = 0.99 * old[name] + 0.01 * moment
            np.testing.assert_allclose(new[name], wanted, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["batch", "online"])
def test_measuring_leaves_the_state_alone_and_training_changes_it(network, kind):
    make, inputs, _ = NETWORKS[network]
    network = make(kind)
    variables = randomize(jax.eval_shape(network.init, tiny.FAST_KEY, inputs))

    @jax.jit
    def apply(variables):
        """Returns the state after training, and after measuring half and all."""
        return [
            network.apply(variables, batch, train=train, mutable=True)
            for batch, train in ((inputs, True), (inputs[:1], False), (inputs, False))
        ]

    trained, first, all_of_them = apply(variables)
    before = {name: variables[name] for name in STATE[kind]}
    for _, state in (first, all_of_them):
        tiny.assert_equal({name: state[name] for name in STATE[kind]}, before)
    changed = jax.tree.map(
        lambda new, old: bool(np.any(new != old)),
        trained[1]["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(changed))
    # Each example is measured alone.
    tiny.assert_close(first[0], jax.tree.map(lambda leaf: leaf[:1], all_of_them[0]))


def test_options_reach_the_module():
    network = MLP(
        (5,), 2, normalization="online", normalization_options={"guard": "clip"}
    )
    variables = randomize(jax.eval_shape(network.init, tiny.FAST_KEY, INPUTS))
    _, features = jax.jit(network.apply)(variables, 100 * INPUTS)
    assert np.max(features["dense_0"]) == 5


@pytest.mark.parametrize("network", NETWORKS)
def test_batch_normalization_of_single_examples_is_refused(network):
    make, inputs, _ = NETWORKS[network]
    network = make("batch")
    variables = jax.eval_shape(network.init, tiny.FAST_KEY, inputs[:1])

    def train(variables):
        return network.apply(variables, inputs[:1], train=True, mutable=["batch_stats"])

    with pytest.raises(ValueError, match="needs more than one example"):
        jax.eval_shape(train, variables)


@pytest.mark.parametrize("make", [make_mlp, make_conv_net])
def test_unknown_normalization(make):
    with pytest.raises(ValueError, match=r"one of \['none', 'batch', .* got 'bach'"):
        make("bach").units()


DROPPING = {
    "mlp": (MLP((5,), 2, "tanh"), INPUTS, "dense_0"),
    "conv_net": (ConvNet(2, "tanh", (4,), (3,), ()), IMAGES, "conv_0"),
}


@pytest.mark.parametrize("network", DROPPING)
def test_dropout_is_in_front_of_the_next_layer(network):
    network, inputs, layer = DROPPING[network]
    variables = randomize(jax.eval_shape(network.init, tiny.FAST_KEY, inputs))
    key = tiny.FAST_KEY

    @jax.jit
    def apply(variables):
        plain, whole, half = (
            network.apply(variables, inputs, *args)
            for args in ((), (0.0, key), (0.5, key))
        )
        dropped = dropout(jax.random.fold_in(key, 0), half[1][layer], 0.5)
        return plain, whole, half, dropped

    plain, whole, half, dropped = apply(variables)
    tiny.assert_equal(whole, plain)
    outputs, features = half
    tiny.assert_equal(features, plain[1])
    kept = dropped != 0
    np.testing.assert_array_equal(dropped[kept], 2 * features[layer][kept])
    share = np.mean(kept)
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / dropped.size)
    head = variables["params"]["head"]
    wanted = dropped.reshape(len(inputs), -1) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)

"""Any pytree of params: flax variables, nnx states, nested lists, a real ConvNet."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import networks

PARAMS = tiny.make_params()
REPLACED = (jnp.array([4, 1]), jnp.array([2]))


def make(units, **options):
    options = {
        "replacement_rate": 0.5,
        "maturity_threshold": 0,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(optax.sgd(0.1), units, **options)


TREES = {
    "variables": (
        lambda layers: {"params": dict(zip(tiny.SHAPES, layers, strict=True))},
        [f"params/{name}" for name in tiny.SHAPES],
    ),
    "list": (lambda layers: list(layers), ["0", "1", "2"]),
    "nested tuples": (
        lambda layers: ({"trunk": (layers[0], [layers[1]])}, layers[2]),
        ["0/trunk/0", "0/trunk/1/0", "1"],
    ),
    "haiku": (
        lambda layers: {f"net/~/linear_{i}": layer for i, layer in enumerate(layers)},
        [f"net/~/linear_{index}" for index in range(3)],
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_units_are_found_in_any_tree(name):
    build, names = TREES[name]
    tree = build([PARAMS[layer] for layer in tiny.SHAPES])
    units = cbp_jax.sequential_units(names)
    replaced = dict(zip(names[:-1], REPLACED, strict=True))
    actual = cbp_jax.reset_units(tree, units, replaced)
    plain = dict(zip(tiny.WIDTHS, REPLACED, strict=True))
    wanted = cbp_jax.reset_units(PARAMS, tiny.UNITS, plain)
    tiny.assert_equal(actual, build([wanted[layer] for layer in tiny.SHAPES]))
    assert not np.asarray(wanted["dense_0"]["bias"])[[1, 4]].any()
    state = jax.eval_shape(make(units).init, tree)
    assert [state.units[key].age.shape for key in names[:-1]] == [(6,), (5,)]


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.dense_0 = nnx.Linear(4, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)


def test_the_state_of_an_nnx_module():
    model = NnxNetwork(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = make(cbp_jax.sequential_units(("dense_0", "head")))
    features = tiny.at(tiny.make_features(), 0)
    new, state = tiny.still_step(tx)(params, tx.init(params), features)
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.sum() == 3
    nnx.update(model, new)
    np.testing.assert_array_equal(model.head.kernel[...][reborn], 0)
    assert np.all(model.head.kernel[...][~reborn] != 0)
    fresh = model.dense_0.kernel[...][:, reborn].T
    np.testing.assert_allclose(fresh, [[0.1, 0.2, 0.3, 0.4]] * 3, rtol=1e-5)


@pytest.fixture(scope="module")
def convnet():
    network = networks.ConvNet(3, "tanh", (4, 3), (3, 2), (5,))
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 1))
    images = jnp.asarray(images, jnp.float32)
    # This generator compiles faster than the default.
    key = jax.random.key(0, impl="unsafe_rbg")
    variables = jax.jit(network.init)(key, images)
    return jax.jit(network.apply), network.units(), variables["params"], images


def test_a_replaced_channel_is_silent_at_every_position_of_its_map(convnet):
    apply, units, params, images = convnet
    _, features = apply({"params": params}, images)
    assert features["conv_1"].shape == (2, 2, 2, 3)
    tx = make(
        [group for group in units if group.name == "conv_1"], replacement_rate=0.3
    )
    state = tx.init(params)
    state = tiny.with_units(state, "conv_1", budget=2**30 - 2**28)
    params, state = tiny.still_step(tx)(params, state, features)
    reborn = tiny.mask_of(state.replaced["conv_1"], 3)
    assert reborn.sum() == 1
    output, _ = apply({"params": params}, images)
    for channel in range(3):
        louder = params["conv_1"]["bias"].at[channel].add(1.0)
        changed = {**params, "conv_1": {**params["conv_1"], "bias": louder}}
        new_output, _ = apply({"params": changed}, images)
        difference = np.abs(np.asarray(new_output - output)).max()
        assert difference == 0 if reborn[channel] else difference > 1e-3
    kernel = np.asarray(params["dense_0"]["kernel"]).reshape(2, 2, 3, 5)
    np.testing.assert_array_equal(kernel[:, :, reborn], 0)


def test_a_replaced_channel_between_convolutions_is_silent(convnet):
    apply, units, params, images = convnet
    _, features = apply({"params": params}, images)
    tx = make([group for group in units if group.name == "conv_0"])
    new, state = tiny.still_step(tx)(params, tx.init(params), features)
    reborn = tiny.mask_of(state.replaced["conv_0"], 4)
    assert reborn.sum() == 2
    np.testing.assert_array_equal(np.asarray(new["conv_1"]["kernel"])[:, :, reborn], 0)
    np.testing.assert_array_equal(np.asarray(new["conv_0"]["bias"])[reborn], 0)
    # The initializer numbers the second-last axis, the inputs: here there is one.
    fresh = np.asarray(new["conv_0"]["kernel"])[..., reborn]
    np.testing.assert_allclose(fresh, 0.1, rtol=1e-5)
    mean = np.asarray(features["conv_0"]).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(
        state.units["conv_0"].mean_activation[~reborn], 0.01 * mean[~reborn], rtol=1e-4
    )


def test_a_kernel_between_two_groups_is_reset_for_the_units_of_both():
    params = tiny.make_params()
    replaced = {"dense_0": jnp.array([1, 4]), "dense_1": jnp.array([0, 5])}
    reset = tiny.by_path(cbp_jax.reset_units(params, tiny.UNITS, replaced))
    old, entries = tiny.by_path(params), tiny.entries_of(replaced)
    for path, leaf in reset.items():
        wanted = np.where(entries[path], 0, old[path])
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)

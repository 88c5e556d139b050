"""Groups beyond a plain chain: branches, normalization, flattened maps, transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import _continual_backprop

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

DECAY = 0.9


def make(units, **options):
    options = {
        "maturity_threshold": 0,
        "decay_rate": DECAY,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(optax.sgd(0.0), units, **options)


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


BRANCHES = {
    "main": (3, 4),
    "main_bias": (4,),
    "shortcut": (2, 4),
    "shortcut_bias": (4,),
    "scale": (4,),
    "shift": (4,),
    "left": (4, 5),
    "right": (4, 2),
    "unrelated": (4, 4),
}
BRANCH = cbp_jax.UnitGroup(
    "block",
    incoming=("main", "shortcut"),
    bias=("main_bias", "shortcut_bias"),
    outgoing=("left", "right"),
    norm_scale="scale",
    norm_bias="shift",
)


@pytest.fixture(scope="module")
def branches():
    """Params before, params after half of the units were replaced, state, mask."""
    params = draw(BRANCHES)
    tx = make(
        (BRANCH,), replacement_rate=0.5, utility_fn=cbp_jax.utility.weight_magnitude
    )
    features = draw({"block": (7, 4)})
    new, state = jax.device_get(tiny.still_step(tx)(params, tx.init(params), features))
    return jax.device_get(params), new, state, tiny.mask_of(state.replaced["block"], 4)


def test_every_leaf_of_a_block_is_reset(branches):
    _, new, _, reborn = branches
    assert reborn.sum() == 2
    np.testing.assert_allclose(
        new["main"][:, reborn].T, [[0.1, 0.2, 0.3]] * 2, rtol=1e-5
    )
    np.testing.assert_allclose(
        new["shortcut"][:, reborn].T, [[0.1, 0.2]] * 2, rtol=1e-5
    )
    for name in ("main_bias", "shortcut_bias", "shift", "left", "right"):
        np.testing.assert_array_equal(new[name][reborn], 0, err_msg=name)
    np.testing.assert_allclose(new["scale"][reborn], 1, rtol=1e-6)


def test_nothing_else_of_a_block_changes(branches):
    old, new, _, reborn = branches
    for name in BRANCHES:
        # The units are the last axis of what comes in, the first of what goes out.
        axis = 0 if name in ("left", "right") else -1
        np.testing.assert_array_equal(
            np.compress(~reborn, new[name], axis), np.compress(~reborn, old[name], axis)
        )
    np.testing.assert_array_equal(new["unrelated"], old["unrelated"])


def test_magnitudes_are_means_over_all_branches(branches):
    old, _, state, reborn = branches
    total = np.abs(old["left"]).sum(axis=1) + np.abs(old["right"]).sum(axis=1)
    np.testing.assert_allclose(
        state.units["block"].utility[~reborn],
        (1 - DECAY) * total[~reborn] / 7,
        rtol=1e-5,
    )
    assert total[reborn].max() < total[~reborn].min()


def test_kernels_of_one_shape_draw_different_weights():
    """Whether they belong to one group, as branches, or to two."""
    params = draw({"one": (4, 4), "other": (4, 4), "next": (4, 4), "out": (4, 2)})
    units = (
        cbp_jax.UnitGroup("block", ("one", "other"), outgoing="next"),
        cbp_jax.UnitGroup("next", "next", outgoing="out"),
    )
    tx = make(units, replacement_rate=1.0, initializer=None, key=tiny.KEY)
    features = draw({"block": (7, 4), "next": (7, 4)})
    new, _ = tiny.still_step(tx)(params, tx.init(params), features)
    new = jax.device_get(new)
    for name, other in (("one", "other"), ("one", "next"), ("other", "next")):
        shared = set(new[name].round(5).flat) & set(new[other].round(5).flat)
        assert not shared, (name, other)


CHAIN = cbp_jax.sequential_units(("conv", "dense", "head"))
MAP = (3, 2, 2, 4)  # Batch, height, width, channels.


def chain_params(layout):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(2, 2, 4, 5))
    kernels = {
        "conv": rng.normal(size=(3, 3, 2, 4)),
        "dense": dense.reshape(16, 5),
        "head": rng.normal(size=(5, 3)),
    }
    if layout == "oi":
        kernels = {
            "conv": kernels["conv"].transpose(3, 2, 0, 1),
            "dense": dense.transpose(3, 2, 0, 1).reshape(5, 16),
            "head": kernels["head"].T,
        }
    biases = {
        "conv": rng.normal(size=4),
        "dense": rng.normal(size=5),
        "head": np.ones(3),
    }
    if layout == "oi":
        biases["conv"] = biases["conv"].reshape(4, 1, 1)
    return {
        name: {
            "kernel": jnp.asarray(kernels[name], jnp.float32),
            "bias": jnp.asarray(biases[name], jnp.float32),
        }
        for name in kernels
    }


def in_io_layout(params):
    """Brings kernels and biases of the "oi" layout to those of "io"."""
    conv, dense, head = (np.asarray(params[name]["kernel"]) for name in params)
    dense = dense.reshape(5, 4, 2, 2).transpose(2, 3, 1, 0).reshape(16, 5)
    kernels = {"conv": conv.transpose(2, 3, 1, 0), "dense": dense, "head": head.T}
    return {
        name: {"kernel": kernels[name], "bias": np.ravel(params[name]["bias"])}
        for name in params
    }


@pytest.fixture(scope="module")
def run_layout():
    """Runs either layout with the same gradients and fresh weights."""
    num_steps = 4
    rng = np.random.default_rng(1)
    features = {
        "conv": jnp.asarray(rng.normal(size=(num_steps, *MAP)), jnp.float32),
        "dense": jnp.asarray(rng.normal(size=(num_steps, 3, 5)), jnp.float32),
    }

    def run(layout):
        params = chain_params(layout)
        # The gradient is the params themselves, in whichever order they are stored.
        grads = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_steps), params)
        tx = cbp_jax.continual_backprop(
            optax.sgd(0.1, momentum=0.5),
            [group._replace(layout=layout) for group in CHAIN],
            replacement_rate=0.25,
            maturity_threshold=1,
            # Independent of the order of the inputs, in which the layouts differ.
            initializer=jax.nn.initializers.constant(0.3),
            key=tiny.FAST_KEY,
        )
        return jax.device_get(tiny.loop(tx, params, grads, features))

    return run


def test_both_layouts_make_the_same_run(run_layout):
    num_replaced = {"conv": 0, "dense": 0}
    for (params, state), (other_params, other_state) in zip(
        run_layout("io"), run_layout("oi"), strict=True
    ):
        tiny.assert_equal(other_state.replaced, state.replaced)
        tiny.assert_close(other_state.units, state.units)
        tiny.assert_close(in_io_layout(other_params), params)
        momentum, other_momentum = (
            each.base_state[0].trace for each in (state, other_state)
        )
        tiny.assert_close(in_io_layout(other_momentum), momentum)
        for name, units in state.units.items():
            num_replaced[name] += (state.replaced[name] < units.age.size).sum()
    assert min(num_replaced.values()) > 1, num_replaced


@pytest.mark.parametrize("layout", ["io", "oi"])
def test_transfer_mean_keeps_the_mean_output_of_the_consumers(layout):
    """Of a linear consumer, when activations do not change: exactly their output."""
    tx = make(
        [group._replace(layout=layout) for group in CHAIN],
        replacement_rate=0.1,
        transfer_mean=True,
    )
    params = chain_params(layout)
    rng = np.random.default_rng(2)
    channels, hidden = rng.normal(size=4), rng.normal(size=5)
    features = {
        "conv": jnp.asarray(np.broadcast_to(channels, MAP), jnp.float32),
        "dense": jnp.asarray(np.broadcast_to(hidden, (3, 5)), jnp.float32),
    }
    state = tx.init(params)
    for name, mean in (("conv", channels), ("dense", hidden)):
        state = tiny.with_units(
            state,
            name,
            age=[5] * len(mean),
            mean_activation=mean * (1 - DECAY**5),
            budget=int(0.95 * (1 << _continual_backprop.BUDGET_BITS)),
        )
    new, state = tiny.still_step(tx)(params, state, features)
    if layout == "oi":
        params, new = in_io_layout(params), in_io_layout(new)
    params, new = jax.device_get((params, new))
    lost = {
        name: tiny.mask_of(state.replaced[name], len(mean))
        for name, mean in (("conv", channels), ("dense", hidden))
    }
    assert lost["conv"].sum() == lost["dense"].sum() == 1
    for consumer, inputs, mask in (
        ("dense", np.tile(channels, 4), np.tile(lost["conv"], 4)),
        ("head", hidden, lost["dense"]),
    ):
        before = inputs @ params[consumer]["kernel"] + params[consumer]["bias"]
        inputs = np.where(mask, 123.0, inputs)  # Whatever the reborn unit does.
        after = inputs @ new[consumer]["kernel"] + new[consumer]["bias"]
        kept = ~lost.get(consumer, np.zeros(3, bool))
        if consumer == "dense":
            # A reborn consumer keeps nothing: its bias is 0.
            np.testing.assert_array_equal(new["dense"]["bias"][~kept], 0)
        np.testing.assert_allclose(after[kept], before[kept], rtol=1e-4, atol=1e-5)
        moved = np.abs(new[consumer]["bias"] - params[consumer]["bias"])[kept]
        assert moved.min() > 1e-3

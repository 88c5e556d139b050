"""Naming groups, and resetting their entries in any tree shaped like the params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

PARAMS = tiny.make_params()
REPLACED = {"dense_0": jnp.array([4, 6, 1]), "dense_1": jnp.array([5, 2])}


def test_a_chain_of_layers():
    first, second = cbp_jax.sequential_units(("net/a", "net/b", "net/out"))
    assert first == cbp_jax.UnitGroup(
        name="net/a",
        incoming="net/a/kernel",
        bias="net/a/bias",
        outgoing="net/b/kernel",
        outgoing_bias="net/b/bias",
    )
    assert (second.name, second.outgoing) == ("net/b", "net/out/kernel")


def test_a_chain_of_layers_of_another_library():
    (group,) = cbp_jax.sequential_units(
        ("mlp/~/linear_0", "mlp/~/linear_1"), kernel="w", bias="b"
    )
    assert (group.incoming, group.bias) == ("mlp/~/linear_0/w", "mlp/~/linear_0/b")
    (group,) = cbp_jax.sequential_units(
        ("layers/0", "layers/1"), kernel="weight", bias=None, layout="oi"
    )
    assert group.bias is None
    assert group.outgoing_bias is None
    assert (group.outgoing, group.layout) == ("layers/1/weight", "oi")


def test_the_order_is_the_given_one_not_the_trees():
    names = [f"layer_{index}" for index in range(12)]
    units = cbp_jax.sequential_units(names)
    assert [group.name for group in units] == names[:-1]
    params = {name: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for name in names}
    # Sorted by key "layer_10" comes before "layer_2", which here reads layer_1.
    params["layer_2"]["kernel"] = jnp.ones((2, 3))
    params["layer_2"]["bias"] = jnp.ones(3)
    params["layer_3"]["kernel"] = jnp.ones((3, 2))
    tx = cbp_jax.continual_backprop(optax.sgd(0.1), units, key=tiny.KEY)
    state = jax.eval_shape(tx.init, params)
    widths = {name: unit.age.shape[0] for name, unit in state.units.items()}
    assert widths == {name: 3 if name == "layer_2" else 2 for name in names[:-1]}


@pytest.mark.parametrize("with_fresh", [False, True])
def test_reset_units_clears_the_entries_of_replaced_units_only(with_fresh):
    fresh = jax.tree.map(lambda leaf: leaf + 100, PARAMS) if with_fresh else None
    tree = cbp_jax.reset_units(PARAMS, tiny.UNITS, REPLACED, fresh)
    old, new = tiny.by_path(PARAMS), tiny.by_path(tree)
    for path, mask in tiny.entries_of(REPLACED).items():
        wanted = np.where(mask, old[path] + 100 if with_fresh else 0, old[path])
        np.testing.assert_array_equal(new[path], wanted, err_msg=path)
    assert (new["dense_1/kernel"] != old["dense_1/kernel"]).sum() == 2 * 5 + 4


def test_reset_units_leaves_groups_that_are_not_named_and_unused_slots():
    nobody = {"dense_1": jnp.full(2, 5)}
    tiny.assert_equal(cbp_jax.reset_units(PARAMS, tiny.UNITS, nobody), PARAMS)
    tiny.assert_equal(cbp_jax.reset_units(PARAMS, tiny.UNITS, {}), PARAMS)


def test_reset_units_keeps_the_dtype_and_runs_under_jit():
    counts = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.int32), PARAMS)
    reset = jax.jit(lambda tree: cbp_jax.reset_units(tree, tiny.UNITS, REPLACED))(
        counts
    )
    leaves = tiny.by_path(reset)
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"int32"}
    for path, mask in tiny.entries_of(REPLACED).items():
        np.testing.assert_array_equal(leaves[path], ~mask)


def test_reset_units_follows_the_transform():
    """An average of the params, kept outside, takes the newborn weights."""
    params, state = tiny.step(
        PARAMS, tiny.newborn(PARAMS), tiny.at(tiny.make_features(), 0), rate=0.5
    )
    average = jax.tree.map(jnp.zeros_like, PARAMS)
    average = cbp_jax.reset_units(average, tiny.UNITS, state.replaced, params)
    for path, mask in tiny.entries_of(state.replaced).items():
        wanted = np.where(mask, tiny.by_path(params)[path], 0)
        np.testing.assert_array_equal(tiny.by_path(average)[path], wanted)


def test_reset_units_rejects_another_tree():
    with pytest.raises(ValueError, match="'dense_1'.*'dense_1/kernel'.*not in"):
        cbp_jax.reset_units({"dense_0": PARAMS["dense_0"]}, tiny.UNITS[1:], REPLACED)

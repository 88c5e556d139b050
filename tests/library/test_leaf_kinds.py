"""What a leaf is, in the trees of linen, nnx, Equinox and Haiku."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import optimizers
from cbp_jax._units import leaf_paths

IMAGES = jnp.ones((2, 4, 4, 3))


def linen():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(5, (2, 2), name="conv")(x)
            x = nn.BatchNorm(use_running_average=False, name="norm")(x)
            # Boxed, as it is where a kernel is to be sharded.
            init = nn.with_partitioning(nn.initializers.ones, (None, None))
            return nn.Dense(2, kernel_init=init, name="head")(x)

    variables = jax.eval_shape(Network().init, jax.random.key(0), IMAGES)
    return variables["params"], variables["batch_stats"]


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 5, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)


def nnx_state():
    model = nnx.eval_shape(lambda: NnxNetwork(nnx.Rngs(0)))
    return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)


def nnx_pure():
    return tuple(map(nnx.to_pure_dict, nnx_state()))


def haiku():
    hk = pytest.importorskip("haiku")

    def network(x):
        x = hk.Conv2D(5, (2, 2), name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True)
        return hk.Linear(2, name="head")(x)

    init = hk.transform_with_state(network).init
    return jax.eval_shape(init, jax.random.key(0), IMAGES)


def equinox():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)

    class Network(eqx.Module):
        conv: eqx.nn.Conv2d = eqx.nn.Conv2d(3, 5, 2, key=key)
        norm: eqx.nn.BatchNorm = eqx.nn.BatchNorm(5, "batch", mode="ema")
        head: eqx.nn.Linear = eqx.nn.Linear(5, 2, key=key)

    model, state = eqx.nn.make_with_state(Network)()
    return eqx.filter(model, eqx.is_inexact_array), state


TREES = {
    "linen": (linen, "conv/kernel head/kernel", "norm/scale"),
    "nnx": (nnx_state, "conv/kernel head/kernel", "norm/scale"),
    "nnx pure": (nnx_pure, "conv/kernel head/kernel", "norm/scale"),
    "haiku": (haiku, "conv/w head/w", "norm/scale"),
    "equinox": (equinox, "conv/weight head/weight", "norm/weight"),
}


def filled(tree, value):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, jnp.float32), tree)


def by_name(params, tree):
    names = [path.name for path in leaf_paths(params)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("library", TREES)
def test_kernels_gains_and_biases_are_told_apart(library):
    build, kernels, gain = TREES[library]
    kernels = kernels.split()
    params = filled(build()[0], 2.0)
    zeros = filled(params, 0.0)
    sizes = by_name(params, params)
    assert len(sizes) == 6 and {*kernels, gain} <= sizes.keys()

    tx = optimizers.spectral_regularization(1.0, exponent=1, key=tiny.FAST_KEY)
    updates = by_name(params, tx.update(zeros, tx.init(params), params)[0])
    for name, update in updates.items():
        if name not in kernels:
            # Twice the distance from 1, or from 0.
            np.testing.assert_allclose(update, 2 if name == gain else 4, err_msg=name)

    tx = optimizers.project_norms()
    norms = by_name(params, tx.init(params).norms)
    assert {name for name, norm in norms.items() if norm > 0} == set(kernels)

    tx = optimizers.fire(optimizers.at(1), num_iterations=1)
    updates = by_name(params, tx.update(zeros, tx.init(params), params)[0])
    changed = {name for name, update in updates.items() if jnp.any(update != 0)}
    assert changed == set(kernels)

    asked = {}
    tx = optimizers.clip_weights(
        1.0, bounds=lambda path, shape: asked.setdefault(path, shape) and 1.0
    )
    tx.update(zeros, tx.init(params), params)
    for name, shape in asked.items():
        own = next((k for k in kernels if k.split("/")[0] == name.split("/")[0]), None)
        assert shape == (sizes[own].shape if own else (5,)), name

    excluded = optimizers.clip_weights(0.0, exclude=("conv", gain))
    updates = by_name(params, excluded.update(zeros, excluded.init(params), params)[0])
    clipped = {name for name, update in updates.items() if jnp.any(update != 0)}
    assert {name for name in clipped if not name.startswith("norm/")} == {
        name for name in sizes if name.startswith("head/")
    }
    assert gain not in clipped


STATISTICS = {
    "linen": ("norm/mean", "norm/var"),
    "nnx": ("norm/mean", "norm/var"),
    "nnx pure": ("norm/mean", "norm/var"),
    "haiku": (
        *("norm/~/mean_ema/average", "norm/~/mean_ema/hidden"),
        *("norm/~/var_ema/average", "norm/~/var_ema/hidden"),
    ),
}


@pytest.mark.parametrize("library", STATISTICS)
def test_statistics_of_reborn_units(library):
    """Means are 0 and variances 1, so that a unit begins with its own activations."""
    statistics = filled(TREES[library][0]()[1], 1e-4)
    paths = STATISTICS[library]
    group = cbp_jax.UnitGroup("conv", "w", outgoing="v", statistics=paths)
    new = cbp_jax.reset_statistics(statistics, [group], {"conv": jnp.array([3, 5])})
    assert jax.tree.structure(new) == jax.tree.structure(statistics)
    new = by_name(statistics, new)
    for path in paths:
        wanted = np.full(5, 1e-4, np.float32)
        wanted[3] = float("var" in path)
        np.testing.assert_array_equal(new[path].ravel(), wanted, err_msg=path)


def test_the_activation_of_a_reborn_unit_of_nnx():
    norm = nnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.full(5, 7.0), jnp.full(5, 1e-4)
    statistics = nnx.state(norm, nnx.BatchStat)
    group = cbp_jax.UnitGroup("a", "w", outgoing="v", statistics=("mean", "var"))
    nnx.update(
        norm, cbp_jax.reset_statistics(statistics, [group], {"a": jnp.array([3])})
    )
    inputs = jnp.linspace(-1, 1, 5)[None] * jnp.ones((4, 1))
    np.testing.assert_allclose(norm(inputs)[:, 3], 0.5, rtol=1e-4)
    np.testing.assert_allclose(norm(inputs)[:, 1], -7.5 / np.sqrt(1.1e-4), rtol=1e-3)


def test_the_state_of_equinox_needs_newborn_statistics():
    _, newborn = equinox()
    leaves, treedef = jax.tree.flatten(newborn)
    indices = [i for i, leaf in enumerate(leaves) if jnp.shape(leaf) == (5,)]
    paths = [leaf_paths(newborn)[index].name for index in indices]
    group = cbp_jax.UnitGroup("conv", "w", outgoing="v", statistics=paths)
    old = treedef.unflatten(
        [leaf if jnp.shape(leaf) == () else leaf + 7 for leaf in leaves]
    )
    replaced = {"conv": jnp.array([3])}
    with pytest.raises(ValueError, match="does not reveal .* Pass newborn"):
        cbp_jax.reset_statistics(old, [group], replaced)
    new = jax.tree.leaves(cbp_jax.reset_statistics(old, [group], replaced, newborn))
    for index in indices:
        wanted = np.where(np.arange(5) == 3, leaves[index], leaves[index] + 7)
        np.testing.assert_array_equal(new[index], wanted)


def test_only_a_value_that_is_alone_is_a_wrapper():
    tree = {"norm": {"mean": 1, "value": 2}, "scale": {"value": 3}, "value": 4}
    names = [path.name for path in leaf_paths(tree)]
    assert names == ["norm/mean", "norm/value", "scale", "value"]
    assert [path.name for path in leaf_paths({"value": 1})] == ["value"]
    assert all(
        path.is_under(keys)
        for path, keys in zip(
            leaf_paths(tree),
            ("norm/mean", "norm/value", "scale/value", "value"),
            strict=True,
        )
    )


def test_a_layer_may_be_called_like_a_field_that_is_kept():
    params = {"mu": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 2))}}
    group = cbp_jax.UnitGroup("h", "mu/kernel", outgoing="head/kernel")
    tx = cbp_jax.continual_backprop(
        optax.adam(0.1),
        [group],
        replacement_rate=1.0,
        maturity_threshold=0,
        keep_state=("mu",),
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    _, state = tx.update(
        params, tx.init(params), params, features={"h": jnp.ones((1, 3))}
    )
    adam = state.base_state[0]
    np.testing.assert_array_equal(adam.nu["mu"]["kernel"], 0)
    assert np.all(adam.mu["mu"]["kernel"] != 0)


def test_what_was_sown_as_value_is_not_the_output_of_its_module():
    output, value = jnp.ones(2), jnp.zeros(2)
    captured = {"attention": {"value": (value,), "__call__": (output,)}}
    found = cbp_jax.collect_features(
        captured, {"a": "attention", "b": "attention/value"}
    )
    np.testing.assert_array_equal(found["a"], output)
    np.testing.assert_array_equal(found["b"], value)

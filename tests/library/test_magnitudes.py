"""Sums of magnitudes are the same for any shape, lanes and shards."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from cbp_jax._xla import sum_magnitudes

# Axes that each number of neighbors divides and that none divides, leaves on both sides
# of what counts as small, and one of four axes.
CASES = [
    ((48, 40), (0,)),
    ((48, 40), (1,)),
    ((35, 36), (0,)),
    ((29, 37), (0,)),
    ((37, 29), (1,)),
    ((6, 5), (0,)),
    ((6, 5), (1,)),
    ((3, 3, 16, 12), (0, 1, 2)),
]


def draw(*shape):
    return np.abs(np.random.default_rng(0).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_it_is_the_sum_with_and_without_lanes(shape, axes):
    lanes = draw(3, *shape)
    wanted = lanes.astype(np.float64).sum(tuple(axis + 1 for axis in axes))
    one = jax.jit(lambda leaf: sum_magnitudes(leaf, axes))
    np.testing.assert_allclose(one(lanes[1]), wanted[1], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(lanes), wanted, rtol=1e-5)


@pytest.mark.parametrize("sharded", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [16, 40])
def test_shards_are_added_up(size, axis, sharded):
    spec = [None, None]
    spec[sharded] = "devices"
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    magnitudes = draw(size, size)
    total = jax.jit(lambda leaf: sum_magnitudes(leaf, (axis,)))
    sums = total(jax.device_put(magnitudes, sharding))
    np.testing.assert_allclose(sums, magnitudes.sum(axis), rtol=1e-5)
    if size == 40:  # A small leaf may not be sharded under lanes.
        lanes = jax.device_put(
            np.stack([magnitudes] * 2), NamedSharding(mesh, PartitionSpec(None, *spec))
        )
        sums = jax.jit(jax.vmap(total))(lanes)
        np.testing.assert_allclose(sums[1], magnitudes.sum(axis), rtol=1e-5)


def test_infinite_and_missing_magnitudes_are_seen():
    magnitudes = jnp.asarray(draw(40, 40)).at[3, 5].set(jnp.inf).at[7, 9].set(jnp.nan)
    sums = sum_magnitudes(magnitudes, (0,))
    assert jnp.isinf(sums[5]) and jnp.isnan(sums[9])
    assert jnp.isfinite(sums).sum() == 38

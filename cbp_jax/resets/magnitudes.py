"""Sums of weights' magnitudes: most of what continual backprop adds to an update."""

import math

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp
import numpy as np

# XLA for CPUs hands sums to a library, and first writes out all that they add up. A sum
# that it does not recognize it computes together with what leads to it, but fast only
# over a few entries. So there neighbors are added up first, as many as divide an axis,
# by the first of these numbers; along the last axis, where they lie side by side, two.
_NEIGHBORS = (8, 4, 5, 10, 6, 7, 9, 3, 2)
# For lanes of leaves of up to so many entries no sum is left to the library. A single
# learner's leaf may be sharded, and only a sum that is one can be added up over shards.
_SMALL_LEAF = 1024


def sum_magnitudes(magnitudes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums numbers that are not negative over some axes.

    It is `jnp.sum` up to rounding, in an order that is fast on the platform it runs on.
    It has no derivative: gradients must have been stopped.

    Args:
      magnitudes: the numbers, floating, of any shape.
      axes: to sum over, not negative.

    Returns:
      The sums, without these axes, of the same dtype.
    """

    def add(magnitudes: jax.Array) -> jax.Array:
        return jnp.sum(magnitudes, axes)

    def multiply(magnitudes: jax.Array) -> jax.Array:
        (axis,) = axes
        if axis == 0:
            magnitudes = _add_neighbors(magnitudes, axis)
        ones = jnp.ones(magnitudes.shape[axis], magnitudes.dtype)
        contracted = ((axis,), (0,)), ((), ())
        return lax.dot_general(magnitudes, ones, contracted, lax.Precision.HIGHEST)

    @custom_vmap
    def total(magnitudes: jax.Array) -> jax.Array:
        if magnitudes.ndim != 2 or len(axes) != 1:
            return add(magnitudes)
        return lax.platform_dependent(magnitudes, cpu=multiply, default=add)

    @total.def_vmap
    def _(
        lanes: int, is_batched: list[bool], magnitudes: jax.Array
    ) -> tuple[jax.Array, bool]:
        del lanes, is_batched  # The only argument is batched.
        inner = tuple(axis + 1 for axis in axes)
        if math.prod(magnitudes.shape[1:]) <= _SMALL_LEAF:
            return _add_unrecognized(magnitudes, inner), True
        if len(inner) != 1:
            return jnp.sum(magnitudes, inner), True
        sums = lax.platform_dependent(
            magnitudes,
            cpu=lambda leaf: jnp.sum(_add_neighbors(leaf, *inner), inner),
            default=lambda leaf: jnp.sum(leaf, inner),
        )
        return sums, True

    return total(magnitudes)


def _add_neighbors(magnitudes: jax.Array, axis: int) -> jax.Array:
    """Adds up groups of neighbors along an axis.

    There are no fewer groups than shards that the axis may have: no group may have to
    be added up over shards. Inside `jax.shard_map` XLA shards nothing.
    """
    is_manual = jax.sharding.get_abstract_mesh().are_all_axes_manual
    most_shards = 1 if is_manual else jax.device_count()
    shape = magnitudes.shape
    numbers = (2,) if axis == magnitudes.ndim - 1 else _NEIGHBORS
    for number in numbers:
        groups = shape[axis] // number, number
        if shape[axis] % number == 0 and groups[0] >= most_shards:
            magnitudes = magnitudes.reshape(*shape[:axis], *groups, *shape[axis + 1 :])
            return _add_unrecognized(magnitudes, (axis + 1,))
    return magnitudes


def _add_unrecognized(magnitudes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums numbers that are not negative such that XLA does not see a sum."""
    zero = np.zeros((), magnitudes.dtype)
    return lax.reduce(
        magnitudes, zero, lambda left, right: jnp.abs(left) + jnp.abs(right), axes
    )

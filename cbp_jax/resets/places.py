"""Where the units of a group lie in one leaf of the params.

Shapes: N units of a group, S stack axes, P positions of a flattened map, K replaced.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp
import numpy as np


class Place(NamedTuple):
    """Where the units of a group lie in one leaf; all fields are static.

    Axes are not negative, and those of one kind are neighbors in ascending order.
    """

    leaf: int  # Index among the leaves of the flattened params.
    num_axes: int  # Of the leaf.
    units: tuple[int, ...]  # Axes that index units, times positions.
    sizes: tuple[int, ...]  # Of these axes.
    stack: int = 0  # Number of stack axes, the first ones.
    positions: int = 1  # P
    layout: str = "io"  # As in `UnitGroup`.
    inputs: tuple[int, ...] = ()  # Axes of an incoming kernel's inputs.
    outputs: tuple[int, ...] = ()  # Axes of an outgoing kernel's outputs.

    def spread(self, per_unit: jax.Array) -> jax.Array:
        """Lays per-unit values [*S, N] along the axes, to broadcast over the leaf."""
        if self.positions > 1 and self.layout == "io":
            per_unit = jnp.tile(per_unit, (1,) * self.stack + (self.positions,))
        elif self.positions > 1:
            per_unit = jnp.repeat(per_unit, self.positions, axis=-1)
        before = self.units[0] - self.stack
        after = self.num_axes - self.units[-1] - 1
        return per_unit.reshape(
            *per_unit.shape[: self.stack], *(1,) * before, *self.sizes, *(1,) * after
        )

    def sum_magnitude(self, leaf: jax.Array, dtype: Any) -> jax.Array:
        """Sums |leaf| over all axes but those of stack and units: [*S, P, N].

        No gradient flows through it.
        """
        others = tuple(
            axis for axis in range(self.stack, leaf.ndim) if axis not in self.units
        )
        magnitudes = jnp.abs(lax.stop_gradient(leaf)).astype(dtype)
        total = _sum(magnitudes, others)
        stack = total.shape[: self.stack]
        if self.layout == "io":
            return total.reshape(*stack, self.positions, -1)
        return total.reshape(*stack, -1, self.positions).swapaxes(-1, -2)

    def full_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape `[*window, fan_in, N]` of one slice of an incoming kernel."""
        window = [
            size
            for axis, size in enumerate(shape)
            if axis >= self.stack and axis not in (*self.inputs, *self.units)
        ]
        fan_in = [shape[axis] for axis in self.inputs]
        return (*window, math.prod(fan_in), math.prod(self.sizes))

    def lay_out(self, columns: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Brings `[*window, fan_in, K]` into a slice's order of axes, units as one."""
        inputs = [shape[axis] for axis in self.inputs]
        number = columns.shape[-1]
        if self.layout == "io":
            return columns.reshape(*columns.shape[:-2], *inputs, number)
        columns = jnp.moveaxis(columns, (-1, -2), (0, 1))
        return columns.reshape(number, *inputs, *columns.shape[2:])

    def put(self, columns: jax.Array, slots: jax.Array | None) -> jax.Array:
        """Puts the columns of `lay_out` where their units are, one for each or all.

        Args:
          columns: of K units, with one axis for them.
          slots: which column each unit takes, int32 [N]; None if there is but one.

        Returns:
          An array that broadcasts to a slice of the leaf.
        """
        axis = self.units[0] - self.stack
        sizes = (1,) * len(self.sizes)
        if slots is not None:
            columns, sizes = jnp.take(columns, slots, axis=axis), self.sizes
        if len(sizes) == 1:
            return columns
        return columns.reshape(
            *columns.shape[:axis], *sizes, *columns.shape[axis + 1 :]
        )


# On a CPU XLA hands sums to a library, which keeps them apart from the arithmetic that
# leads to them. For lanes of leaves of up to so many entries it pays to hide that a sum
# is one. A single learner's leaf may be sharded, and XLA only knows how to add up the
# shards of a sum that it recognizes; as a product with ones it takes half of the time.
_SMALL_LEAF = 1024


def _sum(magnitudes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums numbers that are not negative over some axes."""

    def add(magnitudes: jax.Array) -> jax.Array:
        return jnp.sum(magnitudes, axis=axes)

    def multiply(magnitudes: jax.Array) -> jax.Array:
        (axis,) = axes
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
        if math.prod(magnitudes.shape[1:]) > _SMALL_LEAF:
            return jnp.sum(magnitudes, axis=inner), True
        zero = np.zeros((), magnitudes.dtype)
        return lax.reduce(magnitudes, zero, _add_magnitudes, inner), True

    return total(magnitudes)


def _add_magnitudes(left: jax.Array, right: jax.Array) -> jax.Array:
    """Adds two numbers that are not negative."""
    return jnp.abs(left) + jnp.abs(right)

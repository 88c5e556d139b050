"""Where the units of a group lie in one leaf of the params.

Shapes: N units of a group, S stack axes, P positions of a flattened map, K replaced.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax.resets.magnitudes import sum_magnitudes


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
        total = sum_magnitudes(magnitudes, others)
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

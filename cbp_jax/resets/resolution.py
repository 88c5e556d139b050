"""Finds groups of units in a params tree: paths to leaf indices, axes and sizes.

Everything here is static: it runs when a function is traced and costs nothing after.

Shapes: N units of a group, P positions of a flattened map, K replaced.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from cbp_jax.resets.units import Paths, PyTree, UnitGroup

# Axes of (inputs, outputs) in a kernel of each layout of `UnitGroup`.
KERNEL_AXES = {"io": (-2, -1), "oi": (1, 0)}

# On a CPU XLA hands sums to a library, which keeps them apart from the arithmetic that
# leads to them. For leaves of up to so many entries it pays to hide that a sum is one.
_SMALL_LEAF = 1024


def _add_magnitudes(left: jax.Array, right: jax.Array) -> jax.Array:
    """Adds two numbers that are not negative."""
    return jnp.abs(left) + jnp.abs(right)


class UnitAxis(NamedTuple):
    """Where the units of a group lie in one leaf; all fields are static."""

    leaf: int  # Index among the leaves of the flattened params.
    axis: int  # Non-negative axis that indexes units, times positions.
    positions: int = 1  # P
    layout: str = "io"  # As in `UnitGroup`.

    def spread(self, per_unit: jax.Array, ndim: int) -> jax.Array:
        """Lays per-unit values [N] along the axis, to broadcast over the leaf."""
        if self.positions > 1:
            repeat = jnp.tile if self.layout == "io" else jnp.repeat
            per_unit = repeat(per_unit, self.positions)
        return per_unit.reshape(-1, *(1,) * (ndim - self.axis - 1))

    def sum_magnitude(self, leaf: jax.Array, dtype: Any) -> jax.Array:
        """Sums |leaf| over all axes but the units' own: [P, N] of `dtype`.

        No gradient flows through it.
        """
        others = tuple(axis for axis in range(leaf.ndim) if axis != self.axis)
        magnitudes = jnp.abs(lax.stop_gradient(leaf)).astype(dtype)
        if leaf.size <= _SMALL_LEAF:
            total = lax.reduce(magnitudes, np.zeros((), dtype), _add_magnitudes, others)
        else:
            total = jnp.sum(magnitudes, axis=others)
        if self.layout == "io":
            return total.reshape(self.positions, -1)
        return total.reshape(-1, self.positions).T

    def fresh_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape `[..., fan_in, 1]` to draw for one unit of an incoming kernel."""
        if self.layout == "io":
            return (*shape[:-1], 1)
        return (*shape[2:], shape[1], 1)

    def from_fresh(self, columns: jax.Array) -> jax.Array:
        """Moves the axes of `[..., fan_in, K]` to the kernel's own order."""
        if self.layout == "io":
            return columns
        return jnp.moveaxis(columns, (-1, -2), (0, 1))


class ResolvedGroup(NamedTuple):
    """A `UnitGroup` found in the params: leaf indices and sizes, all static."""

    group: UnitGroup
    num_units: int
    incoming: tuple[UnitAxis, ...]
    outgoing: tuple[UnitAxis, ...]
    outgoing_bias: tuple[int, ...]
    vectors: tuple[UnitAxis, ...]  # Leaves that are set to a constant at a reset:
    vector_values: tuple[float, ...]  # biases and shifts to 0, scales to 1.

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def positions(self) -> int:
        """P, the positions that a consumer of the group flattens; 1 for none."""
        return max(place.positions for place in self.outgoing)

    @property
    def places(self) -> tuple[UnitAxis, ...]:
        """All leaves with entries to reset, in the order of rewriting."""
        return (*self.incoming, *self.vectors, *self.outgoing)


def resolve_units(
    units: Sequence[UnitGroup], params: PyTree
) -> tuple[ResolvedGroup, ...]:
    """Finds every group's leaves in `params` and checks their shapes.

    Args:
      units: the groups, in the order in which they are rewritten.
      params: any pytree of arrays (or of `jax.ShapeDtypeStruct`).

    Returns:
      One `ResolvedGroup` per group, in the same order.

    Raises:
      ValueError: no groups, a name or an incoming leaf used twice, an unknown layout, a
        path that is not in `params`, or leaves whose shapes do not fit together. The
        message names the group, the leaf and the shapes.
    """
    units = tuple(units)
    if not units:
        raise ValueError("units is empty; name at least one UnitGroup.")
    leaves = _Leaves(params)
    resolved = tuple(_resolve_group(group, leaves) for group in units)
    _check_unique("name", [group.name for group in units])
    _check_unique(
        "incoming leaf",
        [leaves.names[place.leaf] for group in resolved for place in group.incoming],
    )
    return resolved


def path_string(path: Sequence[Any]) -> str:
    """Joins the keys of a pytree path by `/`: `dense_0/kernel`."""
    return "/".join(_key_string(key) for key in path)


def _key_string(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


class _Leaves:
    """The leaves of a params tree, found by path."""

    def __init__(self, params: PyTree):
        with_paths, _ = jax.tree_util.tree_flatten_with_path(params)
        self.names = [path_string(path) for path, _ in with_paths]
        self.shapes = [jnp.shape(leaf) for _, leaf in with_paths]

    def find(self, paths: Paths, group: str, field: str) -> list[int]:
        if paths is None:
            return []
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        return [self._find_one(path, group, field) for path in paths]

    def _find_one(self, path: str, group: str, field: str) -> int:
        matches = [
            index
            for index, name in enumerate(self.names)
            if name == path or name.startswith(f"{path}/")
        ]
        if len(matches) == 1:
            return matches[0]
        problem = "is not in the params" if not matches else "names several leaves"
        raise ValueError(
            f"Unit group {group!r}: {field} path {path!r} {problem}, whose leaves are "
            f"{self.names}. Give the path of one leaf, keys joined by '/'."
        )


def _resolve_group(group: UnitGroup, leaves: _Leaves) -> ResolvedGroup:
    if group.layout not in KERNEL_AXES:
        raise ValueError(
            f"Unit group {group.name!r}: layout {group.layout!r} is not one of "
            f"{sorted(KERNEL_AXES)}."
        )
    in_axis, out_axis = KERNEL_AXES[group.layout]
    found = {
        field: leaves.find(getattr(group, field), group.name, field)
        for field in (
            *("incoming", "bias", "outgoing", "outgoing_bias"),
            *("norm_scale", "norm_bias"),
        )
    }
    for field in ("incoming", "outgoing"):
        if not found[field]:
            raise ValueError(
                f"Unit group {group.name!r} has no {field} leaf; give the path of the "
                f"kernel that {'feeds' if field == 'incoming' else 'reads'} its units."
            )

    def axis_of(index: int, axis: int, field: str) -> int:
        shape = leaves.shapes[index]
        if len(shape) < 2:
            raise ValueError(
                f"Unit group {group.name!r}: {field} leaf {leaves.names[index]!r} has "
                f"shape {shape}, but a kernel of two or more axes is needed."
            )
        return axis % len(shape)

    def mismatch(index: int, field: str, wanted: str) -> ValueError:
        first = found["incoming"][0]
        return ValueError(
            f"Unit group {group.name!r} has {num_units} units, from axis {out_axis} of "
            f"{leaves.names[first]!r} with shape {leaves.shapes[first]}, but {field} "
            f"leaf {leaves.names[index]!r} has shape {leaves.shapes[index]}, which "
            f"{wanted}."
        )

    incoming = tuple(
        UnitAxis(index, axis_of(index, out_axis, "incoming"), layout=group.layout)
        for index in found["incoming"]
    )
    num_units = leaves.shapes[incoming[0].leaf][incoming[0].axis]
    for place in incoming:
        if leaves.shapes[place.leaf][place.axis] != num_units:
            raise mismatch(place.leaf, "incoming", "does not have as many units")

    vectors, values = [], []
    for field, value in (("bias", 0.0), ("norm_scale", 1.0), ("norm_bias", 0.0)):
        for index in found[field]:
            shape = leaves.shapes[index]
            if math.prod(shape) != num_units or num_units not in shape:
                raise mismatch(index, field, "does not hold one number per unit")
            vectors.append(UnitAxis(index, shape.index(num_units)))
            values.append(value)

    outgoing = []
    for index in found["outgoing"]:
        axis = axis_of(index, in_axis, "outgoing")
        size = leaves.shapes[index][axis]
        if size == 0 or size % num_units:
            raise mismatch(index, "outgoing", f"reads {size} inputs, not a multiple")
        outgoing.append(UnitAxis(index, axis, size // num_units, group.layout))
    if len({place.positions for place in outgoing} - {1}) > 1:
        raise mismatch(
            outgoing[-1].leaf, "outgoing", "flattens another number of positions"
        )

    if found["outgoing_bias"] and len(found["outgoing_bias"]) != len(outgoing):
        raise ValueError(
            f"Unit group {group.name!r} has {len(outgoing)} outgoing leaves but "
            f"{len(found['outgoing_bias'])} of outgoing_bias; give one for each."
        )
    for index, place in zip(found["outgoing_bias"], outgoing, strict=False):
        outputs = leaves.shapes[place.leaf][out_axis]
        if math.prod(leaves.shapes[index]) != outputs:
            raise mismatch(
                index, "outgoing_bias", f"does not match the consumer's {outputs}"
            )
    return ResolvedGroup(
        group=group,
        num_units=num_units,
        incoming=incoming,
        outgoing=tuple(outgoing),
        outgoing_bias=tuple(found["outgoing_bias"]),
        vectors=tuple(vectors),
        vector_values=tuple(values),
    )


def _check_unique(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(
            f"Every unit group needs its own {what}; repeated: {repeated}."
        )

"""Finds groups of units in a params tree: paths to leaf indices, axes and sizes.

Everything here is static: it runs when a function is traced and costs nothing after.

Shapes: N units of a group, S stack axes, P positions of a flattened map.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

from cbp_jax.resets.leaves import Leaves
from cbp_jax.resets.places import Place
from cbp_jax.resets.units import PyTree, UnitGroup, as_groups

LAYOUTS = ("io", "oi")
_FIELDS = ("incoming", "bias", "outgoing", "outgoing_bias", "norm_scale", "norm_bias")


class ResolvedGroup(NamedTuple):
    """A `UnitGroup` found in the params: leaf indices and sizes, all static."""

    group: UnitGroup
    num_units: int
    stack: tuple[int, ...]  # S
    sizes: tuple[int, ...]  # Of the axes that index units; their product is N.
    incoming: tuple[Place, ...]
    outgoing: tuple[Place, ...]
    outgoing_bias: tuple[int, ...]
    vectors: tuple[Place, ...]  # Leaves that are set to a constant at a reset:
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
    def places(self) -> tuple[Place, ...]:
        """All leaves with entries to reset, in the order of rewriting."""
        return (*self.incoming, *self.vectors, *self.outgoing)


def resolve_units(
    units: Sequence[UnitGroup | str], params: PyTree
) -> tuple[ResolvedGroup, ...]:
    """Finds every group's leaves in `params` and checks their shapes.

    Args:
      units: the groups, in the order in which they are rewritten, or layers' names.
      params: any pytree of arrays (or of `jax.ShapeDtypeStruct`).

    Returns:
      One `ResolvedGroup` per group, in the same order.

    Raises:
      ValueError: no groups, a name or an incoming leaf used twice, an unknown layout, a
        path that is not in `params`, axes that are not declared, or leaves whose shapes
        do not fit together. The message names the group, the leaf and the shapes.
    """
    units = as_groups(units)
    leaves = Leaves(params)
    resolved = tuple(_Resolution(group, leaves).resolve() for group in units)
    _check_unique("name", [group.name for group in units])
    _check_unique(
        "incoming leaf",
        [leaves.names[place.leaf] for group in resolved for place in group.incoming],
    )
    return resolved


class _Resolution:
    """One group and the leaves that its paths name."""

    def __init__(self, group: UnitGroup, leaves: Leaves):
        self.group = group
        self.leaves = leaves
        if group.layout not in LAYOUTS:
            raise self.error(f"layout {group.layout!r} is not one of {list(LAYOUTS)}.")
        self.found = {
            field: leaves.find(getattr(group, field), group.name, field)
            for field in _FIELDS
        }
        for field in ("incoming", "outgoing"):
            if not self.found[field]:
                raise ValueError(
                    f"Unit group {group.name!r} has no {field} leaf; give the path of "
                    f"the kernel that {'feeds' if field == 'incoming' else 'reads'} "
                    "its units."
                )

    def resolve(self) -> ResolvedGroup:
        incoming = tuple(self.incoming(leaf) for leaf in self.found["incoming"])
        first = incoming[0]
        self.sizes = first.sizes
        self.num_units = math.prod(first.sizes)
        self.stack = self.leaves.shapes[first.leaf][: first.stack]
        for place in incoming:
            self.check_stack(place.leaf, "incoming")
            if place.sizes != self.sizes:
                raise self.mismatch(
                    place.leaf, "incoming", "does not have as many units"
                )
        vectors, values = [], []
        for field, value in (
            ("bias", 0.0),
            ("norm_scale", self.group.norm_scale_value),
            ("norm_bias", 0.0),
        ):
            for leaf in self.found[field]:
                vectors.append(self.vector(leaf, field))
                values.append(value)
        outgoing = self.all_outgoing()
        return ResolvedGroup(
            group=self.group,
            num_units=self.num_units,
            stack=self.stack,
            sizes=self.sizes,
            incoming=incoming,
            outgoing=outgoing,
            outgoing_bias=self.outgoing_bias(outgoing),
            vectors=tuple(vectors),
            vector_values=tuple(values),
        )

    def error(self, problem: str) -> ValueError:
        return ValueError(f"Unit group {self.group.name!r}: {problem}")

    def mismatch(self, leaf: int, field: str, wanted: str) -> ValueError:
        first = self.found["incoming"][0]
        return ValueError(
            f"Unit group {self.group.name!r} has {self.num_units} units, from "
            f"{self.leaves.names[first]!r} with shape {self.leaves.shapes[first]}, but "
            f"{field} leaf {self.leaves.names[leaf]!r} has shape "
            f"{self.leaves.shapes[leaf]}, which {wanted}."
        )

    def check_stack(self, leaf: int, field: str) -> None:
        if self.leaves.shapes[leaf][: len(self.stack)] != self.stack:
            raise self.mismatch(leaf, field, f"does not begin with {self.stack}")

    def window(self, leaf: int, field: str, num_axes: int) -> int:
        """Counts the axes of a kernel's window; raises if its axes do not add up."""
        group, shape = self.group, self.leaves.shapes[leaf]
        extra = len(shape) - num_axes
        if extra == 0 or extra == group.spatial_axes:
            return extra
        if group.spatial_axes is None and extra == 2 and num_axes == 2:
            return extra
        if len(shape) < 2:
            raise self.error(
                f"{field} leaf {self.leaves.names[leaf]!r} has shape {shape}, but a "
                "kernel of two or more axes is needed."
            )
        raise self.error(
            f"{field} leaf {self.leaves.names[leaf]!r} has shape {shape}, but "
            f"{num_axes} axes are declared. Declare what the others are: stack_axes of "
            "stacked layers or experts, unit_axes=2 for heads, spatial_axes of a "
            "convolution, input_axes or output_axes; see UnitGroup."
        )

    def incoming(self, leaf: int) -> Place:
        group = self.group
        stack, inputs, units = group.stack_axes, group.input_axes, group.unit_axes
        window = self.window(leaf, "incoming", stack + inputs + units)
        shape = self.leaves.shapes[leaf]
        if group.layout == "io":
            window_axes, input_axes, unit_axes = _split(stack, window, inputs, units)
        else:
            unit_axes, input_axes, window_axes = _split(stack, units, inputs, window)
        del window_axes
        return Place(
            leaf,
            len(shape),
            unit_axes,
            tuple(shape[axis] for axis in unit_axes),
            stack,
            layout=group.layout,
            inputs=input_axes,
        )

    def vector(self, leaf: int, field: str) -> Place:
        self.check_stack(leaf, field)
        stack = len(self.stack)
        shape = self.leaves.shapes[leaf][stack:]
        num_axes = stack + len(shape)
        if shape == self.sizes:
            (axes,) = _split(stack, len(shape))
            return Place(leaf, num_axes, axes, self.sizes, stack)
        if math.prod(shape) != self.num_units or self.num_units not in shape:
            raise self.mismatch(leaf, field, "does not hold one number per unit")
        axis = stack + shape.index(self.num_units)
        return Place(leaf, num_axes, (axis,), (self.num_units,), stack)

    def all_outgoing(self) -> tuple[Place, ...]:
        found, group = self.found["outgoing"], self.group
        given = group.output_axes
        outputs = (given,) * len(found) if isinstance(given, int) else tuple(given)
        if len(outputs) != len(found):
            raise self.error(
                f"output_axes {given} must be one number, or one for each of the "
                f"{len(found)} outgoing leaves."
            )
        places = tuple(
            self.outgoing(leaf, number)
            for leaf, number in zip(found, outputs, strict=True)
        )
        if len({place.positions for place in places} - {1}) > 1:
            raise self.mismatch(
                places[-1].leaf, "outgoing", "flattens another number of positions"
            )
        return places

    def outgoing(self, leaf: int, outputs: int) -> Place:
        self.check_stack(leaf, "outgoing")
        shape, stack = self.leaves.shapes[leaf], len(self.stack)
        units = len(self.sizes)
        if len(shape) == stack + 1 + outputs:
            units = 1  # Heads may be merged before they are read.
        window = self.window(leaf, "outgoing", stack + units + outputs)
        if self.group.layout == "io":
            _, unit_axes, output_axes = _split(stack, window, units, outputs)
        else:
            output_axes, unit_axes, _ = _split(stack, outputs, units, window)
        sizes = tuple(shape[axis] for axis in unit_axes)
        size = math.prod(sizes)
        if size == 0 or size % self.num_units:
            raise self.mismatch(
                leaf, "outgoing", f"reads {size} inputs, not a multiple"
            )
        if units > 1 and sizes != self.sizes:
            raise self.mismatch(leaf, "outgoing", f"reads units of shape {sizes}")
        positions = size // self.num_units
        return Place(
            leaf,
            len(shape),
            unit_axes,
            sizes,
            stack,
            positions,
            self.group.layout,
            outputs=output_axes,
        )

    def outgoing_bias(self, outgoing: Sequence[Place]) -> tuple[int, ...]:
        found = self.found["outgoing_bias"]
        if found and len(found) != len(outgoing):
            raise ValueError(
                f"Unit group {self.group.name!r} has {len(outgoing)} outgoing leaves "
                f"but {len(found)} of outgoing_bias; give one for each."
            )
        for leaf, place in zip(found, outgoing, strict=False):
            self.check_stack(leaf, "outgoing_bias")
            shape = self.leaves.shapes[place.leaf]
            outputs = math.prod(shape[axis] for axis in place.outputs)
            if math.prod(self.leaves.shapes[leaf][len(self.stack) :]) != outputs:
                raise self.mismatch(
                    leaf, "outgoing_bias", f"does not match the consumer's {outputs}"
                )
        return tuple(found)


def _split(first: int, *numbers: int) -> list[tuple[int, ...]]:
    """Splits the axes from a first one on into runs of the given lengths."""
    runs = []
    for number in numbers:
        runs.append(tuple(range(first, first + number)))
        first += number
    return runs


def _check_unique(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(
            f"Every unit group needs its own {what}; repeated: {repeated}."
        )

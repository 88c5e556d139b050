"""Looks for the one leaf that is missing in a group of units, or too many.

Shapes: N units of a group.
"""

from collections.abc import Callable, Iterator, Sequence
import math

from cbp_jax._units import ResolvedGroup, UnitAxes

# Axes of (inputs, outputs) in a plain kernel of each layout.
_KERNEL_AXES = {"io": (-2, -1), "oi": (1, 0)}


def suggestion(
    group: ResolvedGroup,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    is_right: Callable[[Sequence[UnitAxes]], bool],
) -> str:
    """Returns a sentence about what would make a group right, or an empty string.

    Args:
      group: the group, which is wrong.
      names: paths of all leaves.
      shapes: of all leaves.
      is_right: whether a group of these leaves would be.
    """
    for place, field in _missing(group, shapes):
        if is_right((*group.places, place)):
            return f"It would be right with {names[place.leaf]!r} as {field}. "
    for place in group.places:
        if is_right([each for each in group.places if each != place]):
            return f"It would be right without {names[place.leaf]!r}. "
    other = {"io": "oi", "oi": "io"}
    flattened = [
        place._replace(layout=other[place.layout]) if place.positions > 1 else place
        for place in group.places
    ]
    if group.positions > 1 and is_right(flattened):
        return (
            f"Its {group.positions} positions are flattened in the order that layout "
            f"{group.group.layout!r} does not have: the unit must be the last axis "
            "before flattening with 'io', the first behind the batch with 'oi'. "
            "Transpose before you flatten. "
        )
    return ""


def _missing(
    group: ResolvedGroup, shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[UnitAxes, str]]:
    """Lists leaves that are not named and could be, and the field of each."""
    layout, num_units = group.group.layout, group.num_units
    in_axis, out_axis = _KERNEL_AXES[layout]
    named = {place.leaf for place in group.places}
    if group.stack or len(group.sizes) > 1:
        return
    for leaf, shape in enumerate(shapes):
        if leaf in named:
            continue

        def at(axis: int, leaf: int = leaf, shape: tuple[int, ...] = shape) -> UnitAxes:
            return UnitAxes(leaf, len(shape), (axis,), (shape[axis],), layout=layout)

        if math.prod(shape) == num_units and num_units in shape:
            yield at(shape.index(num_units)), "bias, norm_scale or norm_bias"
            continue
        if len(shape) < 2:
            continue
        outputs, inputs = out_axis % len(shape), in_axis % len(shape)
        if shape[outputs] == num_units:
            yield at(outputs), "incoming"
        if shape[inputs] and shape[inputs] % num_units == 0:
            positions = shape[inputs] // num_units
            yield at(inputs)._replace(positions=positions), "outgoing"

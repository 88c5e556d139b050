"""Handlers of elementwise operations and reductions.

Shapes: N units of a source.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import numpy as np

from cbp_jax._discovery import labels as labels_lib
from cbp_jax._discovery.values import Entries, Record, Value, Vector

ADDED = frozenset({"add", "add_any", "sub"})
MULTIPLIED = frozenset({"mul", "div"})
OTHERS = frozenset(
    {
        *("abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh"),
        *("cbrt", "ceil", "clamp", "cos", "cosh", "digamma", "eq", "erf", "erf_inv"),
        *("erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow"),
        *(
            "is_finite",
            "le",
            "lgamma",
            "log",
            "log1p",
            "log2",
            "logistic",
            "lt",
            "max",
            "min",
        ),
        *(
            "ne",
            "neg",
            "nextafter",
            "not",
            "one_minus_square",
            "or",
            "pow",
            "real",
            "rem",
            "round",
        ),
        *("rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
        *("xor",),
    }
)
REDUCTIONS = frozenset(
    {
        *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
        *("reduce_prod", "reduce_sum", "reduce_xor"),
    }
)
WINDOWS = frozenset(
    {"reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"}
)
ALONG_AN_AXIS = frozenset({"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"})


def combine(record: Record, name: str, operands: Sequence[Value], new: Value) -> Value:
    """Follows an elementwise operation; units of its operands become one group."""
    labeled = [operand.units for operand in operands if operand.units is not None]
    entries: dict[int, Entries] = {}
    for operand in operands:
        for each in operand.entries:
            known = entries.get(each.leaf, each)
            entries[each.leaf] = _merge(record, known, each)
    if not labeled:
        if name in ADDED:
            entries = {
                leaf: each._replace(is_shifted=True) for leaf, each in entries.items()
            }
        return new._replace(entries=tuple(entries.values()))
    units = labeled[0]
    for each in labeled[1:]:
        united = _unite(record, units, each)
        if united is None:
            mixed = frozenset().union(*map(record.sources_in, labeled))
            return new._replace(mixed=new.mixed | mixed)
        units = united
    if name in ADDED | MULTIPLIED:
        attach(record, units, tuple(entries.values()), is_added=name in ADDED)
    else:
        _puzzle_vectors(record, units, tuple(entries.values()), name)
    return new._replace(units=units)


def _merge(record: Record, first: Entries, second: Entries) -> Entries:
    """Returns what is known of a leaf combined with itself, as with its own norm."""

    def known_axes(each: Entries) -> int:
        return sum(bool((labels >= 0).any()) for labels in each.coordinates)

    pairs = zip(first.coordinates, second.coordinates, strict=True)
    agree = all(
        np.all((left == right) | (left < 0) | (right < 0)) for left, right in pairs
    )
    if not agree:
        record.puzzle((first,), "it is combined with itself in another order")
    return max(first, second, key=known_axes)


def _unite(record: Record, first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """Merges labels of two operands; None if they do not agree."""
    first, second = np.broadcast_arrays(first, second)
    both = (first >= 0) & (second >= 0)
    pairs = np.unique(np.stack([first[both], second[both]]), axis=1)
    left, right = pairs
    if (record.unit_index(left) != record.unit_index(right)).any():
        return None
    sources = record.sources_in(left) | record.sources_in(right)
    sizes = {record.sources[source].size for source in sources}
    if len(sizes) > 1:
        return None
    if sources:
        record.unite(*sources)
    return labels_lib.compact(np.where(first < 0, second, first))


def attach(
    record: Record, units: np.ndarray, entries: Sequence[Entries], is_added: bool
) -> None:
    """Records params that have one entry per unit, such as biases."""
    for each in entries:
        axes = _unit_axes(record, units, each)
        depends = {axis for at in each.coordinates for axis in labels_lib.varying(at)}
        if axes is None and depends & labels_lib.varying(units):
            name = record.names[each.leaf]
            reason = f"{name} is combined with its units in another order"
            record.leak(record.sources_in(units), reason)
        if not axes:
            continue
        if each.is_shifted and not is_added:
            name = record.names[each.leaf]
            reason = f"something is added to {name} before it multiplies its units"
            record.leak(record.sources_in(units), reason)
        for source in record.sources_in(units):
            vector = Vector(each.leaf, source, axes, is_added)
            if vector not in record.vectors:
                record.vectors.append(vector)


def _unit_axes(
    record: Record, units: np.ndarray, entries: Entries
) -> tuple[int, ...] | None:
    """Returns the axes of a leaf that together index the units; None if none do."""
    index = record.unit_index(units)
    size = max(record.sources[source].size for source in record.sources_in(units))
    shape = record.shapes[entries.leaf]

    def is_unit(labels: np.ndarray) -> bool:
        return bool(np.all((labels == index) | (labels < 0) | (index < 0)))

    if shape and math.prod(shape) == size:
        flat = functools.reduce(
            lambda total, at: total * shape[at] + entries.coordinates[at],
            range(len(shape)),
            np.zeros((), int),
        )
        return tuple(range(len(shape))) if is_unit(flat) else None
    for axis, labels in enumerate(entries.coordinates):
        if 1 < shape[axis] == size and is_unit(labels):
            return (axis,)
    return None


def _puzzle_vectors(
    record: Record, units: np.ndarray, entries: Sequence[Entries], name: str
) -> None:
    for each in entries:
        if _unit_axes(record, units, each):
            leaf = record.names[each.leaf]
            reason = f"{leaf} is applied to its units by {name}, which UnitGroup cannot"
            record.leak(record.sources_in(units), f"{reason} express")


def reduce(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows a reduction of one operand over axes."""
    operand, axes = operands[0], params["axes"]

    def reduced(each: Entries) -> Entries:
        found = (labels_lib.reduce(at, axes) for at in each.coordinates)
        none = np.full((1,) * len(new.shape), -1)
        return each._replace(
            coordinates=tuple(none if at is None else at for at in found)
        )

    new = new._replace(entries=tuple(reduced(each) for each in operand.entries))
    if operand.units is None:
        return new
    units = labels_lib.reduce(operand.units, axes)
    return _labeled_or_mixed(record, units, operand, new)


def window(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows pooling over windows."""
    operand = operands[0]
    sizes = params["window_dimensions"]
    pooled = {axis for axis, size in enumerate(sizes) if size > 1}
    return _keep_unless(record, pooled, operands, operand, new)


def along(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows a cumulative sum or similar operation."""
    return _keep_unless(record, {params["axis"]}, operands, operands[0], new)


def dynamic_slice(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows a slice whose start is known only when the program runs."""
    operand = operands[0]
    sizes = zip(params["slice_sizes"], operand.shape, strict=True)
    cut = {axis for axis, (size, whole) in enumerate(sizes) if size != whole}
    return _keep_unless(record, cut, operands, operand, new)


def _keep_unless(
    record: Record,
    axes: set[int],
    operands: Sequence[Value],
    operand: Value,
    new: Value,
) -> Value:
    reason = "infer_units does not follow params through one of its operations"
    record.puzzle((entry for each in operands for entry in each.entries), reason)
    if operand.units is None:
        return new
    kept = None if labels_lib.varying(operand.units) & axes else operand.units
    return _labeled_or_mixed(record, kept, operand, new)


def _labeled_or_mixed(
    record: Record, units: np.ndarray | None, operand: Value, new: Value
) -> Value:
    if units is None:
        return new._replace(mixed=new.mixed | record.sources_in(operand.units))
    return new._replace(units=units)


HANDLERS = {
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(WINDOWS, window),
    **dict.fromkeys(ALONG_AN_AXIS, along),
    "dynamic_slice": dynamic_slice,
}
"""Handlers by name of the primitive."""


def _elementwise(name: str) -> Callable[..., Value]:
    """Returns the handler of an elementwise primitive."""

    def handler(
        record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
    ) -> Value:
        del params
        return combine(record, name, operands, new)

    return handler


HANDLERS |= {name: _elementwise(name) for name in ADDED | MULTIPLIED | OTHERS}

"""Handlers of products: dense layers, convolutions, and products of activations.

Shapes: N units of a source.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cbp_jax._discovery import labels as labels_lib
from cbp_jax._discovery.elementwise import attach
from cbp_jax._discovery.values import Entries, Read, Record, Value

_MIXED = (
    "its units are summed, compared or reordered before a kernel reads them, as in "
    "attention"
)


class Axes(NamedTuple):
    """Axes of a product's two operands, and where they are in the result."""

    summed: tuple[tuple[int, ...], ...]
    batch: tuple[tuple[int, ...], ...]
    free: tuple[tuple[int, ...], ...]
    new_free: tuple[tuple[int, ...], ...]  # Where `free` is in the result.
    new_batch: tuple[int, ...]
    window: tuple[int, ...] = ()  # Window axes of a convolution's kernel.

    def swapped(self) -> "Axes":
        """Swaps the operands."""
        return self._replace(
            summed=self.summed[::-1],
            batch=self.batch[::-1],
            free=self.free[::-1],
            new_free=self.new_free[::-1],
        )


def dot_general(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows `lax.dot_general`."""
    summed, batch = params["dimension_numbers"]
    free = tuple(
        tuple(
            axis
            for axis in range(len(operand.shape))
            if axis not in summed[side] and axis not in batch[side]
        )
        for side, operand in enumerate(operands)
    )
    ends = np.cumsum([len(batch[0]), len(free[0]), len(free[1])])
    new_free = tuple(range(*ends[:2])), tuple(range(*ends[1:]))
    axes = Axes(summed, batch, free, new_free, tuple(range(ends[0])))
    return _product(record, axes, operands, new)


def convolution(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows `lax.conv_general_dilated`."""
    images, kernel = operands
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        reason = "is read in groups of channels, which UnitGroup cannot express"
        record.puzzle(kernel.entries, f"it {reason}")
        reads = record.sources_in(images.units) | images.mixed
        record.leak(reads, "a convolution in groups of channels reads its units")
        return new
    numbers = params["dimension_numbers"]
    left, right, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    axes = Axes(
        summed=((left[1],), (right[1],)),
        batch=((), ()),
        free=((left[0], *left[2:]), (right[0],)),
        new_free=((out[0], *out[2:]), (out[1],)),
        new_batch=(),
        window=tuple(right[2:]),
    )
    return _product(record, axes, operands, new)


def _product(
    record: Record, axes: Axes, operands: Sequence[Value], new: Value
) -> Value:
    left, right = operands
    if not right.entries or right.is_data:
        axes, left, right = axes.swapped(), right, left
    if right.entries and not right.is_data:
        if left.entries and not left.is_data:
            reason = "it is multiplied by other params before it meets an activation"
            record.puzzle((*left.entries, *right.entries), reason)
            return new
        return _kernel_product(record, axes, left, right, new)
    return _data_product(record, axes, (left, right), new)


def _kernel_product(
    record: Record, axes: Axes, data: Value, kernel: Value, new: Value
) -> Value:
    """Finds which units a kernel reads, and labels its outputs as new units."""
    new = new._replace(mixed=frozenset())  # The kernel reads the mixed units, too.
    table = kernel_of(kernel, axes.summed[1])
    stacked = [
        each
        for each in kernel.entries
        for labels in each.coordinates
        if labels_lib.varying(labels) & set(axes.batch[1])
    ]
    if table is None or stacked:
        reason = "it is a stack or batch of kernels"
        if table is None:
            reason = "the kernel is computed from several params"
        record.puzzle(kernel.entries, reason)
        reads = record.sources_in(data.units) | data.mixed
        names = ", ".join(record.names[each.leaf] for each in kernel.entries)
        record.leak(reads, f"{names} reads its units, but {reason}")
        return new
    summed, free = set(axes.summed[1]), set(axes.free[1])
    depends = [labels_lib.varying(labels) for labels in table.coordinates]
    shape = record.shapes[table.leaf]
    out_axes = [axis for axis, on in enumerate(depends) if on and on <= free]
    if not out_axes:  # One output: an axis of size 1, the last or first by layout.
        single = [axis for axis, size in enumerate(shape) if size == 1]
        last = len(shape) - 1
        out_axes = [last if last in single else 0] if single else []

    def placed(labels: np.ndarray) -> np.ndarray:
        sizes = [1] * len(new.shape)
        for axis, new_axis in zip(axes.free[1], axes.new_free[1], strict=True):
            sizes[new_axis] = labels.shape[axis]
        others = tuple(axis for axis in range(labels.ndim) if axis not in free)
        return labels.max(axis=others).reshape(sizes)

    result = new_units(record, table, out_axes, placed, new, kernel)
    (new_source,) = record.sources_in(result.units)
    candidates = [
        axis for axis, on in enumerate(depends) if axis not in out_axes and on <= summed
    ]
    _read(record, axes, data, table, candidates, new_source)
    return result


def kernel_of(value: Value, summed: Sequence[int]) -> Entries | None:
    """Returns the leaf that acts as kernel; others have one number per output.

    Args:
      value: a value made of params only.
      summed: the axes that the product sums over.
    """
    tables = [
        each
        for each in value.entries
        if any(labels_lib.varying(labels) & set(summed) for labels in each.coordinates)
    ]
    tables = tables or [each for each in value.entries if len(each.coordinates) > 1]
    return tables[0] if len(tables) == 1 else None


def new_units(
    record: Record,
    table: Entries,
    out_axes: Sequence[int],
    placed: Callable[[np.ndarray], np.ndarray],
    new: Value,
    kernel: Value,
) -> Value:
    """Labels a product by the entries of its kernel along some axes of the leaf.

    Args:
      record: takes the new source.
      table: the entries of the kernel.
      out_axes: axes of the leaf that index the new units.
      placed: places labels of the kernel along the axes of the product.
      new: the product.
      kernel: the value that contains the table, and params that multiply it.

    Returns:
      The product with its units.
    """
    source = record.new_source(table.leaf, out_axes)
    index = np.zeros((), int)
    for axis in out_axes:
        size = record.shapes[table.leaf][axis]
        labels = placed(table.coordinates[axis])
        index = np.where((index < 0) | (labels < 0), -1, index * size + labels)
    start = record.labels_of(source)[0]
    units = np.where(index < 0, -1, index + start).reshape(
        index.shape or (1,) * len(new.shape)
    )
    rest = tuple(
        each._replace(coordinates=tuple(placed(at) for at in each.coordinates))
        for each in kernel.entries
        if each.leaf != table.leaf
    )
    attach(record, units, rest, is_added=False)
    return new._replace(units=units)


def _read(
    record: Record,
    axes: Axes,
    data: Value,
    table: Entries,
    candidates: Sequence[int],
    new_source: int,
) -> None:
    """Records which units a kernel reads, along which axis of its leaf."""
    name = record.names[table.leaf]
    of_no_units = Read(table.leaf, None, new_source, -1, 1, frozenset(), data.origin)
    if data.units is None:
        record.leak(data.mixed, _MIXED)
        record.reads.append(of_no_units)
        return
    read = record.sources_in(data.units)
    record.crossings += [(mixed, each) for mixed in data.mixed for each in read]
    source = found = None
    if len(read) > 1:
        reason = f"{name} reads its units concatenated with others"
    elif not labels_lib.varying(data.units) <= set(axes.summed[0]):
        reason = f"{name} does not read its units along one axis"
    else:
        (source,) = read
        units = record.unit_index(labels_lib.on_axes(data.units, axes.summed[0]))
        for axis in candidates:
            entries = labels_lib.on_axes(table.coordinates[axis], axes.summed[1])
            found = found or _order(record, table.leaf, axis, source, units, entries)
        reason = (
            f"{name} reads its units concatenated with others, reordered, or on "
            "several axes"
        )
    if found is None:
        record.leak(read, reason)
        record.reads.append(of_no_units)
    else:
        record.reads.append(
            Read(table.leaf, source, new_source, *found, origin=data.origin)
        )


def _order(
    record: Record,
    leaf: int,
    axis: int,
    source: int,
    units: np.ndarray,
    entries: np.ndarray,
) -> tuple[int, int, frozenset[str]] | None:
    """Returns axis, positions and fitting layouts, if an axis of a leaf reads units."""
    num_units, size = record.sources[source].size, record.shapes[leaf][axis]
    units, entries = np.broadcast_arrays(units, entries)
    if size % num_units or (units < 0).any() and (entries[units < 0] >= 0).any():
        return None
    is_read = (units >= 0) & (entries >= 0)
    units, entries = units[is_read], entries[is_read]
    if np.unique(entries).size != size:
        return None
    positions = size // num_units
    orders = {"io": entries % num_units, "oi": entries // positions}
    fitting = frozenset(name for name in orders if (orders[name] == units).all())
    return (axis, positions, fitting) if fitting else None


def _data_product(
    record: Record, axes: Axes, operands: Sequence[Value], new: Value
) -> Value:
    """Follows a product in which no operand is a param."""
    kept = []
    for side, operand in enumerate(operands):
        if operand.units is None:
            continue
        if labels_lib.varying(operand.units) & {*axes.summed[side], *axes.window}:
            new = mix(record, new, operand)
            continue
        sizes = [1] * len(new.shape)
        moved = (*axes.batch[side], *axes.free[side])
        for axis, new_axis in zip(
            moved, (*axes.new_batch, *axes.new_free[side]), strict=True
        ):
            sizes[new_axis] = operand.units.shape[axis]
        others = tuple(axis for axis in range(operand.units.ndim) if axis not in moved)
        kept.append((operand, operand.units.max(axis=others).reshape(sizes)))
    if len(kept) == 1:
        return new._replace(units=kept[0][1])
    for operand, _ in kept:
        new = mix(record, new, operand)
    return new


def mix(record: Record, new: Value, operand: Value) -> Value:
    """Marks that all units of an operand went into each entry of a value."""
    return new._replace(mixed=new.mixed | record.sources_in(operand.units))


def gather(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows `lax.gather`: a look-up in a table of params, or of activations."""
    operand = operands[0]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(operand.shape)) if axis not in dropped]
    whole = {axis for axis in kept if sizes[axis] == operand.shape[axis]}
    new_axes = dict(zip(kept, numbers.offset_dims, strict=True))

    def moved(labels: np.ndarray) -> np.ndarray:
        result = np.ones(len(new.shape), int)
        for axis in kept:
            result[new_axes[axis]] = labels.shape[axis] if axis in whole else 1
        return labels.reshape(result)

    if operand.entries and not operand.is_data:
        table = kernel_of(operand, ())
        axes = [
            axis
            for axis, labels in enumerate(table.coordinates if table else ())
            if labels_lib.varying(labels) and labels_lib.varying(labels) <= whole
        ]
        if table is None or not axes:
            reason = "it is looked up in a way that infer_units does not support"
            record.puzzle(operand.entries, reason)
            return new
        return new_units(record, table, axes, moved, new, operand)
    if operand.units is None:
        return new
    if labels_lib.varying(operand.units) <= whole:
        return new._replace(units=moved(operand.units))
    return mix(record, new, operand)

"""Label arrays: an integer for each entry of an array, which moves with the entry.

Labels have as many axes as their array, and size 1 along every axis that they do not
depend on. -1 means no label.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import numpy as np


def along(axis: int, ndim: int, labels: np.ndarray) -> np.ndarray:
    """Places labels [N] along one axis of an array with `ndim` axes."""
    return labels.reshape(*(-1 if each == axis else 1 for each in range(ndim)))


def compact(labels: np.ndarray) -> np.ndarray:
    """Shrinks axes that the labels do not depend on to size 1."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis) if labels.shape[axis] > 1 else None
        if first is not None and (labels == first).all():
            labels = first
    return labels


def varying(labels: np.ndarray) -> set[int]:
    """Returns the axes that the labels depend on, ignoring padding."""
    return {axis for axis in range(labels.ndim) if _varies(labels, axis)}


def _varies(labels: np.ndarray, axis: int) -> bool:
    if labels.shape[axis] == 1:
        return False
    most = labels.max(axis=axis, keepdims=True)
    return not ((labels == most) | (labels < 0)).all()


def on_axes(labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Returns the labels as a function of some axes only, in that order."""
    others = tuple(axis for axis in range(labels.ndim) if axis not in axes)
    order = np.argsort(np.argsort(axes))
    return labels.max(axis=others).transpose(order)


def reduce(labels: np.ndarray, axes: Sequence[int]) -> np.ndarray | None:
    """Drops axes; None if the labels depend on one of them."""
    if varying(labels) & set(axes):
        return None
    return labels.max(axis=tuple(axes))


def reshape(
    labels: np.ndarray, shape: Sequence[int], new_shape: Sequence[int]
) -> np.ndarray:
    """Follows a reshape of an array from `shape` to `new_shape`."""
    wide, new = [], []
    for old_axes, new_axes in _same_entries(shape, new_shape):
        is_free = all(labels.shape[axis] == 1 for axis in old_axes)
        wide += [1 if is_free else shape[axis] for axis in old_axes]
        new += [1 if is_free else new_shape[axis] for axis in new_axes]
    return compact(np.broadcast_to(labels, wide).reshape(new))


def _same_entries(
    shape: Sequence[int], new_shape: Sequence[int]
) -> list[tuple[range, range]]:
    """Pairs the runs of axes that a reshape maps to each other."""
    pairs, old, new = [], 0, 0
    while old < len(shape) or new < len(new_shape):
        first_old, first_new = old, new
        old, new = min(old + 1, len(shape)), min(new + 1, len(new_shape))
        while (size := math.prod(shape[first_old:old])) != (
            new_size := math.prod(new_shape[first_new:new])
        ):
            if size < new_size:
                old += 1
            else:
                new += 1
        pairs.append((range(first_old, old), range(first_new, new)))
    return pairs


class Move(NamedTuple):
    """Arguments of a primitive that moves the entries of its only operand."""

    params: dict[str, Any]
    shape: tuple[int, ...]  # Shape of the operand.
    new_shape: tuple[int, ...]  # Shape of the result.


def _transposed(labels: np.ndarray, move: Move) -> np.ndarray:
    return labels.transpose(move.params["permutation"])


def _reshaped(labels: np.ndarray, move: Move) -> np.ndarray:
    return reshape(labels, move.shape, move.new_shape)


def _broadcast(labels: np.ndarray, move: Move) -> np.ndarray:
    sizes = [1] * len(move.new_shape)
    for axis, new_axis in enumerate(move.params["broadcast_dimensions"]):
        sizes[new_axis] = labels.shape[axis]
    return labels.reshape(sizes)


def _squeezed(labels: np.ndarray, move: Move) -> np.ndarray:
    return labels.squeeze(move.params["dimensions"])


def _sliced(labels: np.ndarray, move: Move) -> np.ndarray:
    params = move.params
    steps = params["strides"] or (1,) * labels.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    taken = tuple(
        slice(*each) if size > 1 else slice(None)
        for each, size in zip(bounds, labels.shape, strict=True)
    )
    return compact(labels[taken])


def _padded(labels: np.ndarray, move: Move) -> np.ndarray:
    # Labels that do not depend on an axis extend over its padding.
    for axis, (low, high, between) in enumerate(move.params["padding_config"]):
        size = labels.shape[axis]
        if size == 1 or (low, high, between) == (0, 0, 0):
            continue
        places = low + np.arange(size) * (between + 1)
        kept = (places >= 0) & (places < move.new_shape[axis])
        new = list(labels.shape)
        new[axis] = move.new_shape[axis]
        wide = np.full(new, -1)
        at = (slice(None),) * axis
        wide[(*at, places[kept])] = labels[(*at, kept)]
        labels = wide
    return labels


def _tiled(labels: np.ndarray, move: Move) -> np.ndarray:
    repeats = zip(move.params["reps"], labels.shape, strict=True)
    return np.tile(labels, [number if size > 1 else 1 for number, size in repeats])


def _reversed(labels: np.ndarray, move: Move) -> np.ndarray:
    return np.flip(labels, move.params["dimensions"])


def _same(labels: np.ndarray, move: Move) -> np.ndarray:
    del move
    return labels


MOVES: dict[str, Callable[[np.ndarray, Move], np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _same,
    "copy": _same,
    "name": _same,
    "optimization_barrier": _same,
    "pad": _padded,
    "reduce_precision": _same,
    "reshape": _reshaped,
    "rev": _reversed,
    "sharding_constraint": _same,
    "slice": _sliced,
    "squeeze": _squeezed,
    "stop_gradient": _same,
    "tile": _tiled,
    "transpose": _transposed,
}
"""Primitives that move entries or leave them in place, by name."""


def concatenate(
    parts: Sequence[np.ndarray], shapes: Sequence[Sequence[int]], axis: int
) -> np.ndarray:
    """Follows a concatenation of arrays with the given shapes."""
    wide = [
        np.broadcast_to(
            part, [*part.shape[:axis], shape[axis], *part.shape[axis + 1 :]]
        )
        for part, shape in zip(parts, shapes, strict=True)
    ]
    others = np.broadcast_shapes(
        *((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in wide)
    )
    same = [
        np.broadcast_to(part, [*others[:axis], part.shape[axis], *others[axis + 1 :]])
        for part in wide
    ]
    return compact(np.concatenate(same, axis))

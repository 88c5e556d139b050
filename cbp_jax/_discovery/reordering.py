"""Puts the units of a group into another order in all their leaves.

Shapes: N units of a group, P positions of a flattened map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cbp_jax._units import UnitAxes


def spread_mask(place: UnitAxes, mask: np.ndarray, leaf: Any) -> np.ndarray:
    """Lays a mask [N] along a leaf's axes of units, to broadcast over the leaf."""
    stack = np.shape(leaf)[: place.stack]
    return np.asarray(place.spread(np.broadcast_to(mask, (*stack, mask.size))))


def reorder(
    leaves: Sequence[Any], places: Sequence[UnitAxes], order: np.ndarray
) -> list[Any]:
    """Gives the unit at each index the entries of another one, in every slice.

    Args:
      leaves: of the params.
      places: where the units are.
      order: for each unit whose entries it takes, int [N].

    Returns:
      New leaves.
    """
    leaves = list(leaves)
    for place in places:
        leaf = np.asarray(leaves[place.leaf])
        one_slice = place._replace(stack=0)
        units = np.asarray(one_slice.spread(np.arange(order.size))).reshape(-1)
        # The entries of each unit, position by position: [N, P].
        entries = np.argsort(units, kind="stable").reshape(order.size, -1)
        taken = np.empty(units.size, int)
        taken[entries] = entries[order]
        first, last = place.units[0], place.units[-1]
        flat = leaf.reshape(*leaf.shape[:first], -1, *leaf.shape[last + 1 :])
        leaves[place.leaf] = np.take(flat, taken, axis=first).reshape(leaf.shape)
    return leaves


def neighbors_exchanged(num_units: int) -> np.ndarray:
    """Returns an order in which no unit stays, and most go one place only."""
    order = np.arange(num_units)
    pairs = order[: num_units - num_units % 2].reshape(-1, 2)
    pairs[:] = pairs[:, ::-1].copy()
    if num_units % 2:
        order[-3:] = np.roll(np.arange(num_units)[-3:], 1)
    return order

"""Puts the units of a group into another order in all their leaves.

Shapes: N units of a group, P positions of a flattened map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cbp_jax.resets.resolution import UnitAxis


def spread_mask(place: UnitAxis, mask: np.ndarray, leaf: Any) -> np.ndarray:
    """Lays a mask [N] along a leaf's axis of units, to broadcast over the leaf."""
    return np.asarray(place.spread(mask, np.ndim(leaf)))


def reorder(
    leaves: Sequence[Any], places: Sequence[UnitAxis], order: np.ndarray
) -> list[Any]:
    """Gives the unit at each index the entries of another one.

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
        units = np.asarray(place.spread(np.arange(order.size), leaf.ndim)).reshape(-1)
        # The entries of each unit, position by position: [N, P].
        entries = np.argsort(units, kind="stable").reshape(order.size, -1)
        taken = np.empty(units.size, int)
        taken[entries] = entries[order]
        leaves[place.leaf] = np.take(leaf, taken, axis=place.axis)
    return leaves


def neighbors_exchanged(num_units: int) -> np.ndarray:
    """Returns an order in which no unit stays, and most go one place only."""
    order = np.arange(num_units)
    pairs = order[: num_units - num_units % 2].reshape(-1, 2)
    pairs[:] = pairs[:, ::-1].copy()
    if num_units % 2:
        order[-3:] = np.roll(np.arange(num_units)[-3:], 1)
    return order

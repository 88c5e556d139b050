"""Measures a group of units at one update.

Shapes: B batch, P positions, N units.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from cbp_jax.resets.resolution import ResolvedGroup, UnitAxis
from cbp_jax.resets.rule import Measurements


def measure(
    group: ResolvedGroup,
    feature: jax.Array,
    new_leaves: Sequence[jax.Array],
    age: jax.Array,
    key: jax.Array,
    dtype: Any,
) -> Measurements:
    """Collects what a rule may look at.

    Args:
      group: the resolved group.
      feature: its activations, `[batch, ..., N]`.
      new_leaves: the params after the base optimizer's step, flattened.
      age: of its units, int32 [N], this update included.
      key: of this update and group.
      dtype: floating dtype of the measurements.

    Returns:
      The measurements.

    Raises:
      ValueError: the feature's shape does not fit the group.
    """
    return Measurements(
        activation=_activations(group, feature, dtype),
        incoming_magnitude=_mean_magnitude(group, group.incoming, new_leaves, dtype)[0],
        outgoing_magnitude=_mean_magnitude(group, group.outgoing, new_leaves, dtype),
        age=age,
        key=key,
    )


def _activations(group: ResolvedGroup, feature: jax.Array, dtype: Any) -> jax.Array:
    """Brings a feature `[batch, ..., N]` into the form [B, P, N]."""
    shape = jnp.shape(feature)
    if not shape or shape[-1] != group.num_units:
        raise ValueError(
            f"Feature {group.name!r} has shape {shape}; its last axis must be the "
            f"{group.num_units} units of the group."
        )
    if group.positions > 1 and math.prod(shape[1:-1]) != group.positions:
        raise ValueError(
            f"Feature {group.name!r} has shape {shape}, but the kernel that reads it "
            f"flattens {group.positions} positions of {group.num_units} units. Pass "
            "the activations that are flattened (after pooling) as [batch, height, "
            "width, units]."
        )
    return jnp.asarray(feature, dtype).reshape(-1, group.positions, group.num_units)


def _mean_magnitude(
    group: ResolvedGroup,
    places: Sequence[UnitAxis],
    leaves: Sequence[jax.Array],
    dtype: Any,
) -> jax.Array:
    """Averages |w| over all weights of a unit in some leaves: [P, N]."""
    total = sum(place.sum_magnitude(leaves[place.leaf], dtype) for place in places)
    weights = sum(
        leaves[place.leaf].size // (group.num_units * place.positions)
        for place in places
    )
    return total / weights

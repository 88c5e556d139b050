"""Measures a group of units at one update.

Shapes: S stack axes, B batch, P positions, N units.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from cbp_jax.resets.places import Place
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.rule import Measurements


def measure(
    group: ResolvedGroup,
    feature: jax.Array,
    new_leaves: Sequence[jax.Array],
    age: jax.Array,
    count: jax.Array,
    key: jax.Array,
    dtype: Any,
) -> Measurements:
    """Collects what a rule may look at.

    Args:
      group: the resolved group.
      feature: its activations, `[*S, batch, ..., N]`.
      new_leaves: the params after the base optimizer's step, flattened.
      age: of its units, int32 [*S, N], this update included.
      count: updates before this one, int32 scalar.
      key: of this update and group, [*S].
      dtype: floating dtype of the measurements.

    Returns:
      The measurements, each with the stack axes in front.

    Raises:
      ValueError: the feature's shape does not fit the group.
    """
    return Measurements(
        activation=_activations(group, feature, dtype),
        incoming_magnitude=_mean_magnitude(group, group.incoming, new_leaves, dtype)[
            ..., 0, :
        ],
        outgoing_magnitude=_mean_magnitude(group, group.outgoing, new_leaves, dtype),
        age=age,
        count=jnp.broadcast_to(count, group.stack),
        key=key,
    )


def _activations(group: ResolvedGroup, feature: jax.Array, dtype: Any) -> jax.Array:
    """Brings a feature `[*S, batch, ..., N]` into the form [*S, B, P, N]."""
    shape, stack, units = jnp.shape(feature), len(group.stack), len(group.sizes)
    name = f"Feature {group.name!r} has shape {shape}"
    if shape[len(shape) - units :] != group.sizes:
        raise ValueError(
            f"{name}; its last {units} axes must be the units of the group, "
            f"{group.sizes}."
            if units > 1
            else f"{name}; its last axis must be the {group.num_units} units of the "
            "group."
        )
    if shape[:stack] != group.stack:
        raise ValueError(
            f"{name}; its first axes must be the stack axes of the group, "
            f"{group.stack}."
        )
    middle = shape[stack : len(shape) - units]
    is_convolution = any(
        len(group.sizes) == 1 and place.num_axes - place.stack == 4
        for place in group.incoming
    )
    if is_convolution and group.group.spatial_axes is None and len(middle) > 3:
        raise ValueError(
            f"{name}, more axes than a two-dimensional convolution's, for which a "
            "kernel of four axes is taken. Declare what its axes are: spatial_axes of "
            "a convolution, stack_axes or unit_axes; see UnitGroup."
        )
    if group.positions > 1 and math.prod(middle[1:]) != group.positions:
        raise ValueError(
            f"{name}, but the kernel that reads it flattens {group.positions} "
            f"positions of {group.num_units} units. Pass the activations that are "
            "flattened (after pooling) as [batch, height, width, units]."
        )
    return jnp.asarray(feature, dtype).reshape(
        *group.stack, -1, group.positions, group.num_units
    )


def _mean_magnitude(
    group: ResolvedGroup,
    places: Sequence[Place],
    leaves: Sequence[jax.Array],
    dtype: Any,
) -> jax.Array:
    """Averages |w| over all weights of a unit in some leaves: [*S, P, N]."""
    total = sum(place.sum_magnitude(leaves[place.leaf], dtype) for place in places)
    num_units = math.prod(group.stack) * group.num_units
    weights = sum(
        leaves[place.leaf].size // (num_units * place.positions) for place in places
    )
    return total / weights

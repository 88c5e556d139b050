"""What continual backprop remembers of the units of a group, and its averages.

Shapes: N units.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax.resolution import ResolvedGroup
from cbp_jax.units import PyTree


class UnitState(NamedTuple):
    """What continual backprop knows about the units of one group."""

    utility: jax.Array  # [N], running average, not corrected for age.
    mean_activation: jax.Array  # [N], running average, not corrected for age.
    age: jax.Array  # int32 [N], optimizer updates since birth.
    budget: jax.Array  # int32 scalar, part of a unit owed, in units of 2**-30.


def initial_state(group: ResolvedGroup, params: PyTree) -> UnitState:
    """Returns the state of newborn units, floating fields of at least float32."""
    leaf = jax.tree.leaves(params)[group.incoming[0].leaf]
    dtype = at_least_float32(leaf.dtype)
    # An array of its own for each field, so that the state can be donated.
    return UnitState(
        utility=jnp.zeros(group.num_units, dtype),
        mean_activation=jnp.zeros(group.num_units, dtype),
        age=jnp.zeros(group.num_units, jnp.int32),
        budget=jnp.zeros((), jnp.int32),
    )


def reborn(state: UnitState, mask: jax.Array) -> UnitState:
    """Clears utility, mean activation and age of replaced units, mask bool [N]."""
    return UnitState(
        utility=jnp.where(mask, 0, state.utility),
        mean_activation=jnp.where(mask, 0, state.mean_activation),
        age=jnp.where(mask, 0, state.age),
        budget=state.budget,
    )


def running_average(average: jax.Array, value: jax.Array, decay_rate: Any) -> jax.Array:
    """Averages in a new value [N]; where it is not finite the average stays."""
    decay_rate = jnp.asarray(decay_rate, average.dtype)
    new = decay_rate * average + (1 - decay_rate) * value
    return jnp.where(jnp.isfinite(value), new, average)


def average_weight(age: jax.Array, decay_rate: Any, dtype: Any) -> jax.Array:
    """Returns 1 - decay**age, the weight of a running average that began at 0.

    Args:
      age: steps averaged, integer array of any shape, at least 1.
      decay_rate: in [0, 1).
      dtype: floating dtype of the result.
    """
    log_decay = jnp.log(jnp.asarray(decay_rate, dtype))
    return -jnp.expm1(age.astype(dtype) * log_decay)


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype for statistics of params of a floating dtype."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32

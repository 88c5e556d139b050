"""A log of which units were replaced, filled on the device.

Shapes: C entries per lane and task, K largest number of units replaced in one step.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax import UnitResetState
from cbp_jax.utility import average_weight

ENTRY_FIELDS = ("step", "layer", "unit", "age", "utility")
"""The fields of `ReplacementLog` that describe an entry."""


class ReplacementLog(NamedTuple):
    """Entries of one lane in one task; those beyond C are only counted."""

    step: jax.Array  # int32 [C], updates before this one since the start of the run.
    layer: jax.Array  # int32 [C], index of the hidden layer.
    unit: jax.Array  # int32 [C]
    age: jax.Array  # int32 [C], at the replacement.
    # float32 [C], age-corrected, of the previous step; None if the rule has none.
    utility: jax.Array | None
    count: jax.Array  # int32 scalar, entries so far, including those beyond C.


def empty_log(capacity: int, *, has_utility: bool = True) -> ReplacementLog:
    """Returns a log of C = capacity entries, at the start of a task.

    Args:
      capacity: C.
      has_utility: whether the rule has utilities.
    """
    integers = jnp.zeros(capacity, jnp.int32)
    return ReplacementLog(
        *(integers, integers, integers, integers),
        utility=jnp.zeros(capacity, jnp.float32) if has_utility else None,
        count=jnp.zeros((), jnp.int32),
    )


def record(
    log: ReplacementLog,
    layers: Sequence[str],
    hyperparameters: SimpleNamespace,
    before: UnitResetState,
    after: UnitResetState,
) -> ReplacementLog:
    """Adds the replacements of one update.

    Args:
      log: the log so far.
      layers: names of the hidden layers, the same as those of the unit groups.
      hyperparameters: the learner's hyperparameters, with the `decay_rate` of the
        utilities' running average if the rule has utilities.
      before: the optimizer's state before the update.
      after: the state after the update, whose `replaced` is recorded.

    Returns:
      The log with the new entries.
    """
    capacity = log.step.shape[0]
    for index, name in enumerate(layers):
        units = before.units[name]
        replaced = after.replaced[name]
        is_entry = replaced < units.age.shape[0]
        place = log.count + jnp.cumsum(is_entry) - 1
        place = jnp.where(is_entry, place, capacity)
        unit = jnp.where(is_entry, replaced, 0)
        age = jnp.maximum(units.age[unit], 1)
        entry = {
            "step": jnp.broadcast_to(before.count, unit.shape),
            "layer": jnp.full_like(unit, index),
            "unit": unit,
            "age": age + 1,
        }
        if log.utility is not None:
            dtype = units.utility.dtype
            weight = average_weight(age, hyperparameters.decay_rate, dtype)
            utility = units.utility[unit] / weight
            entry["utility"] = utility.astype(jnp.float32)
        log = log._replace(
            count=log.count + jnp.sum(is_entry, dtype=jnp.int32),
            **{
                field: getattr(log, field).at[place].set(value, mode="drop")
                for field, value in entry.items()
            },
        )
    return log

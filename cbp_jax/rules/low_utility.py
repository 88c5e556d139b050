"""The rule of continual backprop: mature units of low utility, at a steady rate.

Shapes: N units.
"""

from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from cbp_jax.averages import average_weight, over_replicas, running_average
from cbp_jax.checks import check_numbers, is_traced, name_of
from cbp_jax.resets.rule import Choice, Measurements, Rule
from cbp_jax.resets.units import UnitGroup
from cbp_jax.rules.continual_backprop_settings import Settings
from cbp_jax.utility import UnitMeasurements, UtilityFn

# The budget is counted in units of 2**-30 of a unit: integers carry a fraction without
# the drift of float32, where adding 5e-6 near 1 is off by up to 0.6 %.
BUDGET_BITS = 30
_BUDGET_ONE = 1 << BUDGET_BITS


class UnitState(NamedTuple):
    """What continual backprop knows about the units of one group."""

    # [N], running average, not corrected for age; NaN if the utility has been so since
    # birth, for more than one update.
    utility: jax.Array
    mean_activation: jax.Array  # [N], running average, not corrected for age.
    age: jax.Array  # int32 [N], optimizer updates since birth.
    budget: jax.Array  # int32 scalar, part of a unit owed, in units of 2**-30.


def low_utility(settings: Settings, group: UnitGroup) -> Rule:
    """Returns the rule of a group, see `continual_backprop`."""

    def most(num_units: int) -> int:
        return settings.bound(group, num_units)

    def init(num_units: int, dtype: Any) -> UnitState:
        # An array of its own for each field, so that the state can be donated.
        return UnitState(
            utility=jnp.zeros(num_units, dtype),
            mean_activation=jnp.zeros(num_units, dtype),
            age=jnp.zeros(num_units, jnp.int32),
            budget=jnp.zeros((), jnp.int32),
        )

    def update(
        state: UnitState, measurements: Measurements
    ) -> tuple[UnitState, Choice]:
        age, dtype = measurements.age, state.utility.dtype
        utility_key, budget_key = jax.random.split(measurements.key)
        mean = running_average(
            state.mean_activation,
            over_replicas(
                jnp.mean(measurements.activation, axis=(0, 1)), settings.axis_name
            ),
            settings.decay_rate,
        )
        corrected_mean = mean / average_weight(age, settings.decay_rate, dtype)
        value = utility_of(
            settings.utility_fn,
            group.name,
            UnitMeasurements(
                activation=measurements.activation,
                mean_activation=corrected_mean,
                incoming_magnitude=measurements.incoming_magnitude,
                outgoing_magnitude=measurements.outgoing_magnitude,
                age=age,
                key=utility_key,
            ),
        ).astype(dtype)
        value = over_replicas(value, settings.axis_name)
        # An average that has not begun is NaN after a second NaN, to be seen in the
        # state and by `jax_debug_nans`.
        begun = jnp.where(jnp.isnan(state.utility), 0, state.utility)
        is_silent = jnp.isnan(value) & (begun == 0) & (age > 1)
        average = running_average(begun, value, settings.utility_decay)
        average = jnp.where(is_silent, value, average)
        rank = average
        if settings.bias_correction:
            rank = average / average_weight(age, settings.utility_decay, dtype)

        # A unit without a finite utility can neither be ranked nor count as eligible.
        is_mature = age.astype(dtype) > jnp.asarray(settings.maturity_threshold, dtype)
        eligible = is_mature & jnp.isfinite(value) & jnp.isfinite(rank)
        num_eligible = jnp.sum(eligible, dtype=jnp.int32)
        counted = num_eligible
        if settings.count == "all":
            counted = jnp.where(num_eligible > 0, age.size, 0)
        rate = settings.rate_of(group)
        if callable(rate):
            rate = rate(measurements.count)
        due, budget = accrue_budget(
            state.budget,
            jnp.asarray(rate, dtype) * counted.astype(dtype),
            settings.budget,
            budget_key,
        )
        return UnitState(average, mean, age, budget), Choice(
            # Not infinity, which `jax_debug_infs` takes for a fault.
            score=jnp.where(eligible, rank, jnp.finfo(dtype).max),
            number=jnp.minimum(due, jnp.minimum(num_eligible, most(age.size))),
            mean_activation=corrected_mean,
        )

    return Rule(init, update, most)


def utility_of(
    utility_fn: UtilityFn, name: str, measurements: UnitMeasurements
) -> jax.Array:
    """Returns the utilities of a group's units, [N].

    Args:
      utility_fn: see `cbp_jax.utility`.
      name: of the group, for errors.
      measurements: of its units.

    Raises:
      ValueError: the utility function returns anything but one real number a unit.
    """
    value = utility_fn(measurements)
    check_numbers(
        f"utility_fn {name_of(utility_fn)} of unit group {name!r}",
        value,
        measurements.age.shape,
        "one number for each unit",
    )
    return jnp.asarray(value)


def warn_of_nan(
    utility_fn: UtilityFn, name: str, num_units: int, positions: int, dtype: Any
) -> None:
    """Warns of a utility function that gives NaN for units such as networks have.

    Args:
      utility_fn: is called with made-up measurements. Where it fails on these, or needs
        traced arrays, nothing is known.
      name: of the group.
      num_units: N.
      positions: P.
      dtype: floating dtype of the measurements.
    """
    rng = np.random.default_rng(0)
    shape = (8, positions, num_units)
    usual = UnitMeasurements(
        activation=rng.exponential(size=shape).astype(dtype),
        mean_activation=np.ones(num_units, dtype),
        incoming_magnitude=np.ones(num_units, dtype),
        outgoing_magnitude=np.ones(shape[1:], dtype),
        age=np.arange(1, num_units + 1, dtype=np.int32),
        key=None,
    )

    def without(*fields: str) -> UnitMeasurements:
        zeros = {field: np.zeros_like(getattr(usual, field)) for field in fields}
        return usual._replace(**zeros)

    kinds = {
        "usual units": usual,
        "units that are never active": without("activation", "mean_activation"),
        "units without incoming weights": without("incoming_magnitude"),
        "units without outgoing weights": without("outgoing_magnitude"),
    }

    def is_nan(measurements: UnitMeasurements) -> bool:
        with jax.ensure_compile_time_eval(), jax.debug_nans(False):
            measurements = jax.tree.map(jnp.asarray, measurements)
            value = utility_fn(measurements._replace(key=jax.random.key(0)))
            return not is_traced(value) and bool(jnp.isnan(value).any())

    try:
        found = [kind for kind, measurements in kinds.items() if is_nan(measurements)]
    except Exception:  # It fits its own batches only; the first update tells.
        return
    if found:
        warnings.warn(
            f"utility_fn {name_of(utility_fn)} of unit group {name!r} gives NaN for "
            f"{', '.join(found)}. A unit is not replaced as long as its utility is "
            "NaN. Return 0 where a unit is worth nothing, and inf for units that must "
            "stay.",
            stacklevel=3,
        )


def accrue_budget(
    budget: jax.Array, amount: jax.Array, kind: str, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Turns a possibly fractional amount of units into a whole number due now.

    Args:
      budget: carried fraction, int32 scalar in units of 2**-30 of a unit.
      amount: units to replace at this step on average, floating scalar. What is below
        2**-31 counts as 0.
      kind: "accumulate" carries the fraction, "bernoulli" draws it.
      key: for the draw.

    Returns:
      The number due, int32 scalar, and the new budget, always below one unit.
    """
    whole = jnp.floor(amount)
    fraction = amount - whole
    if kind == "bernoulli":
        extra = jax.random.bernoulli(key, fraction).astype(jnp.int32)
    else:
        budget = budget + jnp.round(fraction * _BUDGET_ONE).astype(jnp.int32)
        extra = budget >> BUDGET_BITS
        budget = budget & (_BUDGET_ONE - 1)
    return whole.astype(jnp.int32) + extra, budget

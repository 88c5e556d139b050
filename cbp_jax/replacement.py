"""One step of continual backprop on unit statistics: measure, accrue, select, draw.

Shapes: B batch, P positions, N units, K replaced at most in one step.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from cbp_jax.batching import cond_any_lane
from cbp_jax.resolution import ResolvedGroup
from cbp_jax.settings import Settings
from cbp_jax.unit_state import UnitState, average_weight, running_average
from cbp_jax.utility import UnitMeasurements

# The budget is counted in units of 2**-30 of a unit: integers carry a fraction without
# the drift of float32, where adding 5e-6 near 1 is off by up to 0.6 %.
BUDGET_BITS = 30
_BUDGET_ONE = 1 << BUDGET_BITS

# Purposes of the random numbers derived from the state's key.
_NEXT_KEY, _FRESH_WEIGHTS, _THIS_STEP = range(3)


class Measured(NamedTuple):
    """A group after measuring, before anyone is replaced."""

    state: UnitState
    mean_activation: jax.Array  # [N], corrected for age.
    rank: jax.Array  # [N], utility to rank by, +inf where not to be replaced.
    due: jax.Array  # int32 scalar, number to replace now, at most the eligible.


def nobody(settings: Settings, groups: Sequence[ResolvedGroup]) -> dict[str, jax.Array]:
    """Returns the indices int32 [K] by group name for a step that replaces no unit."""
    return {
        group.name: jnp.full(settings.bound(group), group.num_units, jnp.int32)
        for group in groups
    }


def measure(
    settings: Settings,
    group: ResolvedGroup,
    state: UnitState,
    feature: jax.Array,
    new_leaves: Sequence[jax.Array],
    key: jax.Array,
) -> Measured:
    """Ages the units of a group, averages their utility and counts how many are due.

    Args:
      settings: the transform's options.
      group: the resolved group.
      state: its state.
      feature: its activations, `[batch, ..., N]`.
      new_leaves: the params after the base optimizer's step, flattened.
      key: of this step and group.

    Returns:
      The aged state, with utilities and the number due.

    Raises:
      ValueError: the feature's shape does not fit the group.
    """
    dtype = state.utility.dtype
    utility_key, budget_key = jax.random.split(key)
    activation = _activations(group, feature, dtype)
    age = optax.safe_increment(state.age)
    mean = running_average(
        state.mean_activation, jnp.mean(activation, axis=(0, 1)), settings.decay_rate
    )
    corrected_mean = mean / average_weight(age, settings.decay_rate, dtype)
    value = settings.utility_fn(
        UnitMeasurements(
            activation=activation,
            mean_activation=corrected_mean,
            incoming_magnitude=_mean_magnitude(
                group, group.incoming, new_leaves, dtype
            )[0],
            outgoing_magnitude=_mean_magnitude(
                group, group.outgoing, new_leaves, dtype
            ),
            age=age,
            key=utility_key,
        )
    ).astype(dtype)
    average = running_average(state.utility, value, settings.utility_decay)
    rank = average
    if settings.bias_correction:
        rank = average / average_weight(age, settings.utility_decay, dtype)

    # A unit without a finite utility can neither be ranked nor count as eligible.
    is_mature = age.astype(dtype) > jnp.asarray(settings.maturity_threshold, dtype)
    eligible = is_mature & jnp.isfinite(value)
    num_eligible = jnp.sum(eligible, dtype=jnp.int32)
    counted = num_eligible
    if settings.count == "all":
        counted = jnp.where(num_eligible > 0, group.num_units, 0)
    due, budget = accrue_budget(
        state.budget,
        jnp.asarray(settings.rate_of(group.group), dtype) * counted.astype(dtype),
        settings.budget,
        budget_key,
    )
    return Measured(
        state=UnitState(average, mean, age, budget),
        mean_activation=corrected_mean,
        rank=jnp.where(eligible, rank, jnp.inf),
        due=jnp.minimum(due, jnp.minimum(num_eligible, settings.bound(group))),
    )


def select_and_draw(
    settings: Settings,
    groups: Sequence[ResolvedGroup],
    measured: Mapping[str, Measured],
    rng_key: jax.Array,
    leaves: Sequence[jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, tuple[jax.Array, ...]], jax.Array]:
    """Finds the units to replace and draws their weights, only when any is due.

    Args:
      settings: the transform's options.
      groups: the resolved groups that may lose units.
      measured: by group name.
      rng_key: the state's key.
      leaves: the params, flattened; only shapes and dtypes matter.

    Returns:
      For each group the indices int32 [K], N where unused; for each group and incoming
      leaf the fresh weights, K along the unit axis; and the next key, which is the old
      one if nobody is due, so that a lane does not depend on the lanes beside it.
    """
    if not groups:
        return {}, {}, rng_key
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
    order = list(measured)

    def work(operand: Any) -> Any:
        ranks, due, rng_key = operand
        fresh_key = jax.random.fold_in(rng_key, _FRESH_WEIGHTS)
        replaced, fresh = {}, {}
        for group in groups:
            bound = settings.bound(group)
            key = jax.random.fold_in(fresh_key, order.index(group.name))
            replaced[group.name] = _lowest(ranks[group.name], due[group.name], bound)
            fresh[group.name] = _draw_columns(settings, group, key, shapes, bound)
        next_key = jax.random.fold_in(rng_key, _NEXT_KEY)
        return replaced, fresh, jnp.where(_any_due(due), next_key, rng_key)

    def skip(operand: Any) -> Any:
        _, fresh, _ = jax.eval_shape(work, operand)
        _, _, rng_key = operand
        fresh = jax.tree.map(jnp.zeros_like, fresh)
        return nobody(settings, groups), fresh, rng_key

    ranks = {group.name: measured[group.name].rank for group in groups}
    due = {group.name: measured[group.name].due for group in groups}
    return cond_any_lane(_any_due(due), work, skip, (ranks, due, rng_key))


def step_keys(
    rng_key: jax.Array, state: UnitState, groups: Sequence[ResolvedGroup]
) -> dict[str, jax.Array]:
    """Returns a key for each group at this step, by name.

    Between two replacements the state's key stays and the ages grow, so their sum tells
    the steps apart. A step that draws nothing then costs nothing.
    """
    clock = jnp.sum(state.age).astype(jnp.uint32)
    key = jax.random.fold_in(jax.random.fold_in(rng_key, _THIS_STEP), clock)
    return {
        group.name: jax.random.fold_in(key, index) for index, group in enumerate(groups)
    }


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
    group: ResolvedGroup, places: Sequence[Any], leaves: Sequence[jax.Array], dtype: Any
) -> jax.Array:
    """Averages |w| over all weights of a unit in some leaves: [P, N]."""
    total = sum(place.sum_magnitude(leaves[place.leaf], dtype) for place in places)
    weights = sum(
        leaves[place.leaf].size // (group.num_units * place.positions)
        for place in places
    )
    return total / weights


def _any_due(due: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_or, [number > 0 for number in due.values()])


def _lowest(rank: jax.Array, number: jax.Array, bound: int) -> jax.Array:
    """Finds the units of lowest rank [N], among equals the lowest index: int32 [K]."""
    _, indices = lax.top_k(-rank, bound)
    return jnp.where(jnp.arange(bound, dtype=jnp.int32) < number, indices, rank.size)


def _draw_columns(
    settings: Settings,
    group: ResolvedGroup,
    key: jax.Array,
    shapes: Sequence[tuple[tuple[int, ...], Any]],
    number: int,
) -> tuple[jax.Array, ...]:
    """Draws the weights of K units for each incoming leaf, K along the unit axis."""
    initializer = group.group.initializer or settings.initializer
    columns = []
    for index, place in enumerate(group.incoming):
        shape, dtype = shapes[place.leaf]
        shape = place.fresh_shape(shape)
        leaf_key = jax.random.fold_in(key, index)

        def draw_unit(
            slot: jax.Array, key: Any = leaf_key, shape: Any = shape, dtype: Any = dtype
        ) -> jax.Array:
            return initializer(jax.random.fold_in(key, slot), shape, dtype)

        # A key for each unit makes its weights independent of the bound K.
        slots = jnp.arange(number, dtype=jnp.uint32)
        drawn = jax.vmap(draw_unit, out_axes=-1)(slots).squeeze(-2)
        columns.append(place.from_fresh(drawn))
    return tuple(columns)

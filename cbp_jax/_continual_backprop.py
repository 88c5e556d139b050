"""Continual backprop: replaces mature units of low utility at a steady rate.

The rule of Dohare et al. (2024) and its options, built on `cbp_jax.reset_by_rule`.

Shapes: N units of a group, K largest number of units replaced in one step.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np
import optax

from cbp_jax import utility
from cbp_jax._numbers import (
    at_least_float32,
    average_weight,
    check_choice,
    check_numbers,
    check_range,
    is_known,
    is_known_zero,
    is_traced,
    name_of,
    over_replicas,
    running_average,
)
from cbp_jax._resets import Choice, Measurements, Rule, UnitResetState, reset_by_rule
from cbp_jax._types import AxisName, Initializer, PyTree, Rate
from cbp_jax._units import ResolvedGroup, UnitGroup, as_groups, resolve_units

# The budget is an integer that counts 2**-30 of a unit. It carries a fraction without
# the drift of float32, where adding 5e-6 near 1 is off by up to 0.6 %.
BUDGET_BITS = 30
_BUDGET_ONE = 1 << BUDGET_BITS


# After this many times 1 / (1 - decay) updates, an average has 95 % of its weight.
_SHORT = 3

_FINITE_UTILITIES = (  # Known to be finite if their measurements are.
    utility.contribution,
    utility.mean_corrected_contribution,
    utility.adaptation,
    utility.overall,
    utility.weight_magnitude,
    utility.activation_over_input,
    utility.random,
    utility.gradient,
    utility.activation_gradient,
    utility.activation_times_gradient,
)


class UnitState(NamedTuple):
    """State of continual backprop for the units of one group."""

    # [N], running average, not corrected for age; NaN if the utility has been NaN for
    # two or more updates, all since the last reset.
    utility: jax.Array
    mean_activation: jax.Array  # [N], running average, not corrected for age.
    age: jax.Array  # int32 [N], optimizer updates since the last reset.
    budget: jax.Array  # int32 scalar, fraction of a unit due, in units of 2**-30.


ContinualBackpropState = UnitResetState
"""State of `continual_backprop` and `replace_units`; each group has a `UnitState`."""


def continual_backprop(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    replacement_rate: Rate = 1e-4,
    decay_rate: float | jax.Array = 0.99,
    maturity_threshold: int | float | jax.Array = 100,
    utility_fn: utility.UtilityFn = utility.overall,
    initializer: Initializer | None = None,
    key: jax.Array,
    budget: str = "accumulate",
    count: str = "eligible",
    max_per_step: int | None = None,
    bias_correction: bool = True,
    moments: str = "reset",
    keep_state: Sequence[str] = (),
    transfer_mean: bool = False,
    axis_name: AxisName | None = None,
    draw: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by the replacement of mature units of low utility.

    Each update first takes the base optimizer's step. Then the age :math:`a_i` of every
    unit i grows by one, and its utility is averaged, with the activations :math:`h`
    from before the step and the weights :math:`w` after it:

    .. math::
      f_i &\leftarrow \eta f_i + (1 - \eta) h_i, \quad
        \hat f_i = f_i / (1 - \eta^{a_i}) \\
      u_i &\leftarrow \eta u_i + (1 - \eta) y_i(h, \hat f, w), \quad
        \hat u_i = u_i / (1 - \eta^{a_i})

    where :math:`y` is `utility_fn`. Units with :math:`a_i > m` are eligible. On
    average, `replacement_rate` times the number of eligible units of each group are
    replaced, those with the lowest :math:`\hat u`: their incoming weights are redrawn,
    and their biases, outgoing weights, utilities, mean activations and ages become 0.
    All groups are measured before the first is reset; they are reset in order.

    The returned updates are those of the base optimizer, except for reset entries,
    which they set to the new values. Make this the last transformation in a chain:
    anything after it that rescales updates breaks the resets. To give each lane of a
    `vmap` its own `key` or hyperparameters, build the transformation inside the vmapped
    function; all numbers may be traced arrays.

    Example::

      units = cbp_jax.sequential_units(("dense_0", "dense_1", "head"))
      tx = cbp_jax.continual_backprop(optax.sgd(3e-3), units, key=jax.random.key(0))
      state = tx.init(params)
      updates, state = tx.update(grads, state, params, features=features)
      params = optax.apply_updates(params, updates)

    Args:
      base_optimizer: an optax transformation that changes the params at every call; see
        `reset_by_rule`. It receives `features`, `unit_ages` (see
        `cbp_jax.optimizers.adam_with_unit_counts`) and all other extra arguments, if it
        accepts them. A `value_fn`, the loss that a line search calls, receives the
        first two only if its signature names them.
      units: groups of hidden units, or the names of a chain's layers; see `UnitGroup`
        and `sequential_units`.
      replacement_rate: fraction of eligible units replaced per update, in [0, 1], or an
        optax schedule of it, a function of the number of updates so far (int32). 0 is
        the base optimizer, bit for bit.
      decay_rate: :math:`\eta`, of both running averages, in [0, 1).
      maturity_threshold: :math:`m`, in updates; infinity replaces no unit.
      utility_fn: instantaneous utility; see `cbp_jax.utility`. A unit whose utility is
        not finite is not replaced at this update. If the utility has been NaN ever
        since the unit was reset, the average in the state is also NaN.
      initializer: function like those of `jax.nn.initializers` that draws new incoming
        weights. Pass the one that the network was initialized with. It draws a whole
        kernel `[..., fan_in, N]`, and a reset unit uses its column, unless it is marked
        by `cbp_jax.initializers.unit_by_unit`. None is `kaiming_uniform("relu")`.
      key: PRNG key for new weights and random utilities, typed or from
        `jax.random.PRNGKey`. Under `vmap`, use "threefry2x32" (JAX's default) if the
        results of a lane must not depend on other lanes: for batched "rbg" and
        "unsafe_rbg" keys, JAX draws all numbers from the first lane's key.
        `jax.random.key(seed, impl="threefry2x32")` works whatever the setting of
        `JAX_DEFAULT_PRNG_IMPL`.
      budget: "accumulate" carries the fraction of a unit that is due over to the next
        step; "bernoulli" replaces one more unit with that probability. Whole units that
        are due but cannot be replaced, because too few are eligible or because of
        `max_per_step`, are dropped.
      count: with "eligible", rate x eligible units are due per step; with "all", rate x
        N units are due as soon as any unit of the group is eligible.
      max_per_step: static bound K on the units of a group replaced in one step. None is
        max(1, ceil(rate x N)), which is always enough. Required if the rate is traced
        or a schedule.
      bias_correction: rank by the age-corrected utility. False ranks by :math:`u`
        itself, which underrates units that have just matured unless the maturity
        threshold is long compared with 1 / (1 - decay_rate); below three times that
        there is a warning.
      moments: "reset" sets the base optimizer's moments of reset units to their initial
        values, as given by its `init`; "keep" does not change them. Arrays of the base
        state that are not shaped like a param (step counts, Adafactor's factors,
        Shampoo's matrices) never change. With a global step count, Adam's first steps
        for a reset unit are then too long; `cbp_jax.optimizers.adam_with_unit_counts`
        corrects this. "reset" restarts a base with L-BFGS completely. In either case,
        line searches forget the loss from before a reset.
      keep_state: names of fields of the base state that are shaped like the params but
        must not be reset, such as `("init_params",)` for `optax.contrib.dog`.
      transfer_mean: add a replaced unit's mean activation times its outgoing weights to
        its consumers' biases (`UnitGroup.outgoing_bias`). Not in the paper.
      axis_name: name of a `jax.shard_map` or `jax.pmap` axis over which the batch is
        split and the params are replicated. Mean activations and utilities are averaged
        over it, so that all replicas reset the same units. The gradients
        must have been averaged. Under `jax.jit` sharded arrays need nothing.
      draw: when fresh weights are drawn. "when_due" draws them at updates that replace
        a unit, behind a conditional; "always" draws and mostly drops them, without one;
        "auto" is "always" on a GPU, which a conditional holds up, where the params are
        at most 2**20 numbers, at most 8 units of a group are replaced in a step and the
        initializer is marked by `unit_by_unit`, and else "when_due". All give the same
        numbers.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state `ContinualBackpropState`.
      Its update needs `params` and the keyword `features`, a mapping from each group's
      name to the activations of this step's batch, `[batch, ..., N]`; other entries are
      ignored. A utility of the gradients of activations also needs `feature_gradients`;
      see `reset_by_rule`. Inside `optax.MultiSteps`, ages count optimizer updates, and
      utilities are computed from the features of the last mini-batch.

    Raises:
      ValueError: when built, an option is unknown or out of range; at `init`, a group
        does not fit the params, `reset_by_rule` refuses the base optimizer, or its
        state does not have a field in `keep_state`; at `update`, params or features are
        missing, or features or utilities have the wrong shape.

    Warns:
      UserWarning: when built, units would be ranked too early (see `bias_correction`);
        at `init`, your own `utility_fn` gives NaN for made-up units, such as units that
        are never active or have no weights.

    References:
      Dohare et al., `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature 632, 2024, Algorithm 1;
      preprint `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_.
    """
    if not callable(replacement_rate):
        check_range("replacement_rate", replacement_rate, 0, 1)
    check_range("decay_rate", decay_rate, 0, 1, open_end=True)
    check_range("maturity_threshold", maturity_threshold, 0, math.inf)
    check_choice("budget", budget, ("accumulate", "bernoulli"))
    check_choice("count", count, ("eligible", "all"))
    if max_per_step is not None and max_per_step < 1:
        raise ValueError(f"max_per_step must be at least 1, got {max_per_step}.")
    # A memoryless utility is not averaged.
    utility_decay = 0.0 if getattr(utility_fn, "memoryless", False) else decay_rate

    def complete(group: UnitGroup) -> UnitGroup:
        """Gives a group its rate, and freezes it if no unit is ever replaced."""
        rate = group.replacement_rate
        rate = replacement_rate if rate is None else rate
        _check_rate(group.name, rate, max_per_step)
        never = is_known_zero(rate) or is_known(maturity_threshold, np.isposinf)
        return group._replace(replacement_rate=rate, frozen=group.frozen or never)

    def init(num_units: int, dtype: DTypeLike) -> UnitState:
        # Each field has its own array, so that the state can be donated.
        return UnitState(
            utility=jnp.zeros(num_units, dtype),
            mean_activation=jnp.zeros(num_units, dtype),
            age=jnp.zeros(num_units, jnp.int32),
            budget=jnp.zeros((), jnp.int32),
        )

    def most(rate: Rate | None, num_units: int) -> int:
        """Returns K; traced and scheduled rates require max_per_step."""
        if max_per_step is not None:
            return min(max_per_step, num_units)
        known = float(rate)  # pyrefly: ignore[bad-argument-type]
        return max(1, math.ceil(known * num_units))

    def update(
        group: UnitGroup, state: UnitState, measured: Measurements
    ) -> tuple[UnitState, Choice]:
        rate, age, dtype = group.replacement_rate, measured.age, state.utility.dtype
        utility_key, budget_key = jax.random.split(measured.key)

        # Average the activations, then the utility.
        mean = running_average(
            state.mean_activation,
            over_replicas(jnp.mean(measured.activation, axis=(0, 1)), axis_name),
            decay_rate,
        )
        corrected_mean = mean / average_weight(age, decay_rate, dtype)
        value = _utility_of(
            utility_fn,
            group.name,
            measured._replace(mean_activation=corrected_mean, key=utility_key),
        ).astype(dtype)
        value = over_replicas(value, axis_name)
        # An average that has not started becomes NaN at a second NaN, so that the state
        # and `jax_debug_nans` show it.
        begun = jnp.where(jnp.isnan(state.utility), 0, state.utility)
        is_silent = jnp.isnan(value) & (begun == 0) & (age > 1)
        average = running_average(begun, value, utility_decay)
        average = jnp.where(is_silent, value, average)
        rank = average
        if bias_correction:
            rank = average / average_weight(age, utility_decay, dtype)

        # A unit without a finite utility can neither be ranked nor count as eligible.
        is_mature = age.astype(dtype) > jnp.asarray(maturity_threshold, dtype)
        eligible = is_mature & jnp.isfinite(value) & jnp.isfinite(rank)
        num_eligible = jnp.sum(eligible, dtype=jnp.int32)
        counted = num_eligible
        if count == "all":
            counted = jnp.where(num_eligible > 0, age.size, 0)
        rate_now = rate(measured.count) if callable(rate) else rate
        due, budget_left = accrue_budget(
            state.budget,
            jnp.asarray(rate_now, dtype) * counted.astype(dtype),
            budget,
            budget_key,
        )
        return UnitState(average, mean, age, budget_left), Choice(
            # Not infinity, which would trip `jax_debug_infs`.
            score=jnp.where(eligible, rank, jnp.finfo(dtype).max),
            number=jnp.minimum(due, jnp.minimum(num_eligible, most(rate, age.size))),
            mean_activation=corrected_mean,
        )

    def rule(group: UnitGroup) -> Rule:
        return Rule(
            init,
            functools.partial(update, group),
            functools.partial(most, group.replacement_rate),
            needs=getattr(utility_fn, "needs", ()),
        )

    groups = [complete(group) for group in as_groups(units)]
    if not all(group.frozen for group in groups) and not bias_correction:
        _warn_of_early_ranking(maturity_threshold, utility_decay)
    transformation = reset_by_rule(
        base_optimizer,
        groups,
        rule,
        initializer=initializer,
        key=key,
        moments=moments,
        keep_state=keep_state,
        transfer_mean=transfer_mean,
        draw=draw,
    )

    def init_checked(params: PyTree) -> ContinualBackpropState:
        leaves = jax.tree.leaves(params)
        if leaves and utility_fn not in _FINITE_UTILITIES:
            for group in resolve_units(groups, params):
                if not group.group.frozen:
                    dtype = at_least_float32(leaves[group.incoming[0].leaf].dtype)
                    _try_utility(utility_fn, group, dtype)
        return transformation.init(params)

    return optax.GradientTransformationExtraArgs(init_checked, transformation.update)


def replace_units(
    units: Sequence[UnitGroup], **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Continual backprop as the last transformation in an `optax.chain`.

    (To reset replaced units in your own trees, see `reset_units`.)

    Example::

      tx = optax.chain(optax.adam(1e-3), cbp_jax.replace_units(units, key=key))
      updates, state = tx.update(grads, state, params, features=features)

    It has no access to the other transformations in the chain, so it resets no moments.
    A line search in the chain passes all extra arguments to its loss. Add a parameter
    `features` to the loss, or make the chain the base of `continual_backprop`, which
    does not need it.

    Args:
      units: as for `continual_backprop`.
      **options: as for `continual_backprop`.

    Returns:
      As `continual_backprop`.
    """
    return continual_backprop(optax.identity(), units, **options)


def accrue_budget(
    budget: jax.Array, amount: jax.Array, kind: str, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Turns a possibly fractional number of units into a whole number due now.

    Args:
      budget: carried fraction, int32 scalar in units of 2**-30 of a unit.
      amount: average number of units to replace at this step, floating scalar. A
        fraction below 2**-31 counts as 0.
      kind: "accumulate" carries the fraction, "bernoulli" draws it.
      key: key of the draw.

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


def _check_rate(name: str, rate: Rate, max_per_step: int | None) -> None:
    """Raises ValueError if a rate is out of range or has no static bound."""
    kind = "a schedule" if callable(rate) else "traced"
    if not callable(rate):
        check_range(f"replacement_rate of unit group {name!r}", rate, 0, 1)
    if max_per_step is None and (callable(rate) or is_traced(rate)):
        raise ValueError(
            f"The replacement_rate of unit group {name!r} is {kind}, so the number of "
            "units replaced in a step has no static bound. Pass max_per_step: 1, or "
            "ceil(largest rate x units)."
        )


def _warn_of_early_ranking(
    maturity_threshold: float | jax.Array, utility_decay: float | jax.Array
) -> None:
    """Warns if units are known to be ranked before their averages are reliable."""
    if is_traced(maturity_threshold) or is_traced(utility_decay):
        return
    memory = 1 / (1 - np.asarray(utility_decay, float))
    maturity = np.asarray(maturity_threshold, float)
    # 0 asks for no protection; without memory there is nothing to correct.
    if np.any((maturity > 0) & (maturity < _SHORT * memory) & (memory > 1)):
        warnings.warn(
            f"maturity_threshold is {maturity_threshold} and decay_rate "
            f"{utility_decay}, without bias_correction: the utilities of units that "
            "have just matured are still near 0, so mostly these units are replaced. "
            "Pass bias_correction=True, or a maturity_threshold of at least "
            f"{_SHORT} / (1 - decay_rate).",
            stacklevel=3,
        )


def _utility_of(
    utility_fn: utility.UtilityFn, name: str, measured: Measurements
) -> jax.Array:
    """Returns the utilities of the units of a group, [N].

    Raises:
      ValueError: the utility function does not return one real number per unit.
    """
    value = utility_fn(measured)
    check_numbers(
        f"utility_fn {name_of(utility_fn)} of unit group {name!r}",
        value,
        measured.age.shape,
        "one number for each unit",
    )
    return jnp.asarray(value)


def _try_utility(
    utility_fn: utility.UtilityFn, group: ResolvedGroup, dtype: DTypeLike
) -> None:
    """Warns if a utility function gives NaN for units that occur in networks.

    It is called with made-up measurements. If it fails on these, or needs traced
    arrays, there is no warning.
    """
    rng = np.random.default_rng(0)
    shape = (8, group.positions, group.num_units)
    usual = {
        "activation": rng.exponential(size=shape).astype(dtype),
        "incoming_magnitude": np.ones(group.num_units, dtype),
        "outgoing_magnitude": np.ones(shape[1:], dtype),
        "age": np.arange(1, group.num_units + 1, dtype=np.int32),
        "count": np.asarray(group.num_units, np.int32),
        "mean_activation": np.ones(group.num_units, dtype),
    }
    gradients = {
        "incoming_gradient": np.ones(group.num_units, dtype),
        "activation_gradient": np.ones(shape, dtype),
    }
    usual |= {name: gradients[name] for name in getattr(utility_fn, "needs", ())}

    def without(*fields: str) -> dict[str, np.ndarray]:
        return usual | {field: np.zeros_like(usual[field]) for field in fields}

    kinds = {
        "usual units": usual,
        "units that are never active": without("activation", "mean_activation"),
        "units without incoming weights": without("incoming_magnitude"),
        "units without outgoing weights": without("outgoing_magnitude"),
    }

    def is_nan(measured: Mapping[str, np.ndarray]) -> bool:
        with jax.ensure_compile_time_eval(), jax.debug_nans(False):
            arrays = {name: jnp.asarray(array) for name, array in measured.items()}
            value = utility_fn(Measurements(**arrays, key=jax.random.key(0)))
            return not is_traced(value) and bool(jnp.isnan(value).any())

    try:
        found = [kind for kind, measured in kinds.items() if is_nan(measured)]
    except Exception:  # It only fits its own batches; the first update will show it.
        return
    if found:
        warnings.warn(
            f"utility_fn {name_of(utility_fn)} of unit group {group.name!r} gives NaN "
            f"for {', '.join(found)}. A unit is not replaced while its utility is NaN. "
            "Return 0 for units that are worth nothing, and inf for units that must "
            "not be replaced.",
            stacklevel=3,
        )

"""The engine: an optax transformation that resets the units that a rule chooses.

Read `update` and `reset` in `reset_by_rule` from top to bottom: take the base
optimizer's step, measure every group, let its rule choose, draw new weights if any unit
is due, write them into the updates, and reset the moments.

Shapes: B batch (times spatial positions that share their outgoing weights), P positions
(1, except for a convolution that is flattened into a dense layer), N units of a group,
S stack axes of a group, K largest number of units reset in one update.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple, Self
import warnings

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from cbp_jax import _bases, _trees
from cbp_jax._numbers import (
    at_least_float32,
    check_choice,
    check_numbers,
    key_bits,
    key_of,
    lead_to,
    part_way,
    widen,
)
from cbp_jax._types import Initializer, PyTree
from cbp_jax._units import (
    COLLECTION,
    ResolvedGroup,
    UnitAxes,
    UnitGroup,
    UnitMask,
    as_groups,
    resolve_units,
)
from cbp_jax._xla import (
    cond_any_lane,
    first_minima,
    in_auto_mode,
    next_key_if,
    one_by_one_on_cpu,
)
from cbp_jax.initializers import draws_unit_by_unit, kaiming_uniform

# Purposes of the random numbers derived from the state's key.
_NEXT_KEY, _FRESH_WEIGHTS, _THIS_UPDATE = range(3)

# So few fresh columns of a group, in so small params, a GPU draws faster than it finds
# out whether any unit is due. Of larger params the time is that of memory: on
# an H100, without a conditional XLA sums the outgoing magnitudes of 3 x 2,000 units
# apart from the backward pass, which moves a fifth more bytes.
_FEW, _SMALL = 8, 2**20


class Measurements(NamedTuple):
    """What a rule or a utility can use, in the floating dtype of the state.

    Under `jit`, unused measurements are not computed. The gradients are None unless
    the rule or the utility names them in its `needs`.

    A gradient is the one that `update` receives, before the base optimizer. Whatever
    comes earlier in a chain has already changed it: in `optax.chain(penalty,
    continual_backprop(base, ...))` it includes the penalty, and behind clipping it is
    clipped. Put both into the base optimizer to measure the gradient of the loss alone.
    """

    activation: jax.Array  # [B, P, N], from before the optimizer step.
    incoming_magnitude: jax.Array  # [N], mean |w| into the unit, after the step.
    outgoing_magnitude: jax.Array  # [P, N], mean |w| out of the unit, after the step.
    age: jax.Array  # int32 [N], updates since the last reset, including this one.
    count: jax.Array  # int32 scalar, optimizer updates before this one.
    key: jax.Array  # A key for this update and group.
    # [N], running average corrected for the unit's age; None if the rule has none.
    mean_activation: jax.Array | None = None
    incoming_gradient: jax.Array | None = None  # [N], mean |dL/dw| into the unit.
    # [B, P, N], dL/dh, from the keyword `feature_gradients` of `update`.
    activation_gradient: jax.Array | None = None


_GRADIENTS = ("incoming_gradient", "activation_gradient")


class Choice(NamedTuple):
    """Which units to reset: the `number` of lowest `score`; of equals, the first.

    With a `fraction` f, a chosen unit is reset in part. Everything that a reset sets
    goes that far from its value after the base optimizer's step toward its value after
    a reset: incoming weights become (1 - f) w + f fresh, outgoing weights (1 - f) w,
    and biases, normalization parameters, learned slopes and moments likewise, if they
    are reset at all. A fraction of 0 changes nothing, and 1 is a reset as without
    fractions.

    The age and the rule's state of a unit are reset, and it counts in `replaced` and
    `num_replaced`, only if its fraction is 1. For the others the rule decides: what its
    `update` returns stays.
    """

    # Floating [N]. Units that must not be reset have NaN or the highest score: +inf, or
    # the largest finite number, because +inf would trip `jax_debug_infs`.
    score: jax.Array
    number: jax.Array  # int32 scalar, at most the number of units that may be reset.
    mean_activation: jax.Array | None = None  # [N], for `transfer_mean`.
    # Floating [N] in [0, 1], how far to reset each chosen unit; None for completely.
    fraction: jax.Array | None = None


class Rule(NamedTuple):
    """The reset rule of one group, as pure functions.

    Attributes:
      init: `(num_units, dtype) -> state`, a NamedTuple of arrays with a field `age`,
        int32 [N], which the engine increments at every update. Fields with a leading
        axis of N belong to units; a reset sets them to their values from `init`. All
        others must be scalars and are not reset. `dtype` is floating.
      update: `(state, measurements) -> (state, choice)`, called at every update after
        the age has been incremented. The choice has no effect if its number is 0.
      most: `num_units -> K`, a static bound on the units reset in one update, if one is
        known; None for all N. Further chosen units are not reset.
      needs: the gradients that `update` reads, of "incoming_gradient" and
        "activation_gradient". Others are not measured.
    """

    init: Callable[[int, DTypeLike], PyTree]
    update: Callable[[PyTree, Measurements], tuple[PyTree, Choice]]
    most: Callable[[int], int] | None = None
    needs: Sequence[str] = ()


class UnitResetState(NamedTuple):
    """State of `reset_by_rule` and of every transformation built on it."""

    base_state: PyTree  # The base optimizer's state.
    units: dict[str, PyTree]  # The rule's state of each group, by name.
    rng_key: jax.Array  # Bits of a key, uint32; they change when a unit is reset.
    # int32 [*S, N], units reset in the last update, N where unused; and int32 [*S], the
    # number of units reset since `init`. Both leave out units reset in part.
    replaced: dict[str, jax.Array]
    num_replaced: dict[str, jax.Array]
    count: jax.Array  # int32 scalar, updates since `init`.


def choose_where(mask: jax.Array) -> Choice:
    """Returns the choice of all units in a mask, bool [N]."""
    score = jnp.where(mask, 0.0, 1.0)
    return Choice(score, jnp.sum(mask, dtype=jnp.int32))


def reset_by_rule(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    rule: Rule | Callable[[UnitGroup], Rule],
    *,
    initializer: Initializer | None = None,
    key: jax.Array,
    moments: str = "reset",
    keep_state: Sequence[str] = (),
    transfer_mean: bool = False,
    between_reset: str = "fresh",
    biases: str = "reset",
    draw: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Base optimizer, followed by a reset of the units that a rule chooses.

    At each update, after the base optimizer's step, the rule gets each group's
    `Measurements` and chooses units. A reset redraws a chosen unit's incoming weights,
    sets its biases and outgoing weights to 0, its normalization scale to 1 and shift to
    0, and its learned slope to that of a new unit, and restores the initial values of
    the base optimizer's moments and the rule's state. All groups are measured before
    the first is reset; they are reset in order. A rule may also reset units in part;
    see `Choice`.

    The returned updates are those of the base optimizer, except for reset entries,
    which they set to the new values. Make this the last transformation in a chain:
    anything after it that rescales updates breaks the resets. An update whose dtype is
    narrower than its param's is returned in a dtype that covers both, so that bfloat16
    gradients reset float32 params exactly.

    Args:
      base_optimizer: an optax transformation that changes the params at every call,
        because units age at every call. `apply_every`, `MultiSteps`,
        `conditionally_mask` and the transparent mode of `contrib.sam` are refused, and
        so is any other base that skips calls in a trial on params with one entry per
        leaf. `apply_if_finite` is accepted: the updates that it skips count as updates.
        With `moments="reset"`, a base is also refused if its steps after a reset in
        such a trial are more than ten times as long as any before, like those of
        `contrib.acprop`, which then divides by a moment of 0. The base receives
        `features`, `unit_ages` and other extra arguments; see `continual_backprop`.
      units: groups of hidden units, or the names of a chain's layers; see
        `sequential_units`.
      rule: the rule of every group, or a function that maps a group to its rule.
      initializer: see `continual_backprop`.
      key: PRNG key for new weights and random choices. Under `vmap`, "rbg" keys make a
        lane depend on its neighbors; see `continual_backprop`.
      moments: see `continual_backprop`.
      keep_state: see `continual_backprop`.
      transfer_mean: see `continual_backprop`; the rule's choices must have
        `mean_activation`.
      between_reset: the new value of a weight between two units reset in the same
        update. "fresh" redraws it if the group of its reader comes later in `units`, as
        in continual backprop's code, which resets one layer after another; with "zero",
        all incoming weights are drawn first and all outgoing ones zeroed then.
      biases: "keep" does not change biases, normalization parameters, learned slopes or
        their moments.
      draw: see `continual_backprop`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state `UnitResetState`. Its update
      needs `params` and the keyword `features`; see `continual_backprop`. A rule that
      needs the gradient of activations also needs the keyword `feature_gradients`, the
      derivatives of the loss with respect to the features, a mapping like `features`.
      `cbp_jax.training.TrainState` takes it in its `extra_args`.

    Raises:
      ValueError: as in `continual_backprop`; also, when built, a rule needs an unknown
        gradient; at `update`, a gradient that it needs is missing, or an array in its
        choice has the wrong shape or dtype.
    """
    units = as_groups(units)
    rules = {
        group.name: rule if isinstance(rule, Rule) else rule(group) for group in units
    }
    for own_rule in rules.values():
        for name in own_rule.needs:
            check_choice("Each of a rule's needs", name, _GRADIENTS)
    initializer = kaiming_uniform("relu") if initializer is None else initializer
    if moments == "zero":
        warnings.warn(
            'moments="zero" is now moments="reset".', DeprecationWarning, stacklevel=3
        )
        moments = "reset"
    check_choice("moments", moments, ("reset", "keep"))
    check_choice("between_reset", between_reset, ("fresh", "zero"))
    check_choice("biases", biases, ("reset", "keep"))
    check_choice("draw", draw, ("auto", "when_due", "always"))
    base_optimizer = optax.with_extra_args_support(base_optimizer)
    accepted = _bases.accepted(
        base_optimizer, ("features", "unit_ages", "feature_gradients")
    )

    def newborn(group: ResolvedGroup, leaves: Sequence[jax.Array]) -> PyTree:
        state = rules[group.name].init(group.num_units, _state_dtype(group, leaves))
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*group.stack, *leaf.shape)), state
        )

    def init(params: PyTree) -> UnitResetState:
        if not jax.tree.leaves(params):
            return placeholder(params)
        groups, leaves = resolve_units(units, params), jax.tree.leaves(params)
        for group in groups:
            if transfer_mean:
                _check_transferable(group)
            if not group.group.frozen:
                _check_initializer(
                    group.group.initializer or initializer, group, leaves
                )
        if moments == "reset":
            _trees.check_resettable(base_optimizer, params, keep_state)
        base_state = base_optimizer.init(params)
        _bases.check_base(base_optimizer, base_state, params, moments, keep_state)
        return UnitResetState(
            base_state=base_state,
            units={group.name: newborn(group, leaves) for group in groups},
            rng_key=key_bits(key),
            replaced={group.name: _no_units(group) for group in groups},
            num_replaced={
                group.name: jnp.zeros(group.stack, jnp.int32) for group in groups
            },
            count=jnp.zeros((), jnp.int32),
        )

    def placeholder(params: PyTree) -> UnitResetState:
        """Returns the state's structure, for `optax.tree.map_params` without params."""
        none = jnp.zeros((), jnp.int32)
        return UnitResetState(
            base_state=base_optimizer.init(params),
            units={name: rule.init(1, jnp.float32) for name, rule in rules.items()},
            rng_key=key_bits(key),
            replaced=dict.fromkeys(rules, none),
            num_replaced=dict.fromkeys(rules, none),
            count=none,
        )

    def update(
        updates: PyTree,
        state: UnitResetState,
        params: PyTree | None = None,
        *,
        features: Mapping[str, jax.Array] | None = None,
        feature_gradients: Mapping[str, jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, UnitResetState]:
        groups, activations = _check_arguments(units, params, features)
        gradients = _check_gradients(groups, rules, params, updates, feature_gradients)
        own_args = {
            "features": features,
            "unit_ages": {name: unit.age for name, unit in state.units.items()},
        }
        if feature_gradients is not None:
            own_args["feature_gradients"] = feature_gradients
        if "value_fn" in extra_args:
            value_fn = _bases.tolerant(extra_args["value_fn"], list(own_args))
            extra_args = extra_args | {"value_fn": value_fn}
        taken = {name: own_args[name] for name in own_args if name in accepted}
        updates, base_state = base_optimizer.update(
            updates, state.base_state, params, **taken, **extra_args
        )
        stepped = updates, state._replace(base_state=base_state)
        return in_auto_mode(functools.partial(reset, groups), stepped)(
            *stepped, params, activations, gradients
        )

    def reset(
        groups: Sequence[ResolvedGroup],
        updates: PyTree,
        state: UnitResetState,
        params: PyTree,
        activations: Mapping[str, jax.Array],
        gradients: _Gradients,
    ) -> tuple[PyTree, UnitResetState]:
        """Resets the units that the rules choose, after the base optimizer's step."""
        if biases == "keep":
            groups = [group._replace(vectors=()) for group in groups]
        leaves, treedef = jax.tree.flatten(params)
        new_leaves = jax.tree.leaves(optax.apply_updates(params, updates))
        rng_key = key_of(state.rng_key, key)
        update_key = jax.random.fold_in(rng_key, _THIS_UPDATE)
        update_key = jax.random.fold_in(update_key, state.count)

        # Measure every group, then let its rule choose.
        unit_states, choices = {}, {}
        for index, group in enumerate(groups):
            unit_state = state.units[group.name]
            unit_state = unit_state._replace(age=optax.safe_increment(unit_state.age))
            dtype = _state_dtype(group, leaves)
            with jax.named_scope("measure"):
                measured = Measurements(
                    activation=_activations(group, activations[group.name], dtype),
                    incoming_magnitude=_mean_magnitude(
                        group, group.incoming, new_leaves, dtype
                    )[..., 0, :],
                    outgoing_magnitude=_mean_magnitude(
                        group, group.outgoing, new_leaves, dtype
                    ),
                    age=unit_state.age,
                    count=jnp.broadcast_to(state.count, group.stack),
                    key=_slice_keys(jax.random.fold_in(update_key, index), group.stack),
                    **_measure_gradients(
                        group, rules[group.name].needs, gradients, dtype
                    ),
                )
            with jax.named_scope("choose"):
                choose = _over_stack(rules[group.name].update, group)
                unit_state, choice = choose(unit_state, measured)
            _check_choice(group, choice, transfer_mean)
            unit_states[group.name], choices[group.name] = unit_state, choice

        # Draw fresh weights; all but a GPU do so only when any unit is due.
        # Left out altogether, a frozen group is the base optimizer's to the last bit:
        # even a select that takes every update changes how XLA rounds `p + update`.
        live = [group for group in groups if not group.group.frozen]
        newborns = {group.name: newborn(group, leaves) for group in live}
        # Rules for several units keep more of each, and a GPU would copy all of it to
        # hand it to a conditional.
        lone = {
            group.name: newborns.pop(group.name)
            for group in live
            if _most(rules[group.name], group) == 1
        }
        with jax.named_scope("draw"):
            drawn, reborn, rng_key, num_replaced = _draw_if_due(
                *(groups, rules, initializer, choices, unit_states, lone, rng_key),
                *(state.num_replaced, leaves, draw),
            )
            unit_states |= reborn

        # Write them into the updates.
        update_leaves = treedef.flatten_up_to(updates)
        extents = {
            group.name: _Extent.of(
                _reset_units(group, rules[group.name], drawn[group.name]),
                choices[group.name].fraction,
            )
            for group in live
        }
        entries = []  # To reset: axes, extent, value.
        with jax.named_scope("write"):
            for name, fresh_state in newborns.items():
                unit_states[name] = _reborn(
                    unit_states[name], fresh_state, extents[name].whole
                )
            for group in live:
                extent = extents[group.name]
                if transfer_mean:
                    lost = jnp.where(
                        extent.units.mask, choices[group.name].mean_activation, 0
                    )
                    if extent.fraction is not None:
                        lost *= extent.fraction
                    update_leaves = _transfer_means(
                        group, lost, new_leaves, update_leaves
                    )
                fresh = _lay_columns(group, rules[group.name], drawn[group.name])
                values = group.values(fresh)
                for axes, value in zip(group.all_axes, values, strict=True):
                    entries.append((axes, extent, value))
            if between_reset == "zero":
                # Outgoing weights last, whatever their group.
                entries.sort(key=lambda entry: bool(entry[0].outputs))
            for axes, extent, value in entries:
                old, update = leaves[axes.leaf], update_leaves[axes.leaf]
                value = jnp.asarray(value, old.dtype)
                if extent.fraction is not None:
                    stepped = optax.apply_updates(old, update)
                    value = part_way(stepped, value, axes.spread(extent.fraction))
                # A select is fused into the update and costs no pass over memory; a
                # scatter would have to write the updates out first.
                where = axes.spread_mask(extent.units, old.shape)
                update_leaves[axes.leaf] = lead_to(value, where, update, old)
            updates = treedef.unflatten(update_leaves)

        # Reset the moments.
        masks = [(group, extents[group.name].units) for group in live]
        with jax.named_scope("moments"):
            base_state = _trees.forget_loss(state.base_state, masks)
            if moments == "reset":
                base_state = _trees.reset_moments(
                    base_optimizer,
                    base_state,
                    optax.apply_updates(params, updates),
                    masks,
                    keep_state,
                    fractions={
                        name: extent.fraction
                        for name, extent in extents.items()
                        if extent.fraction is not None
                    },
                )
        return updates, UnitResetState(
            base_state=base_state,
            units=unit_states,
            rng_key=key_bits(rng_key),
            replaced={
                group.name: _no_units(group)
                if group.group.frozen
                else drawn[group.name].replaced
                for group in groups
            },
            num_replaced=num_replaced,
            count=optax.safe_increment(state.count),
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Measuring.


def _state_dtype(group: ResolvedGroup, leaves: Sequence[jax.Array]) -> DTypeLike:
    """Returns the floating dtype of a group's measurements and its rule's state."""
    return at_least_float32(leaves[group.incoming[0].leaf].dtype)


def _activations(
    group: ResolvedGroup, feature: jax.Array, dtype: DTypeLike, kind: str = "Feature"
) -> jax.Array:
    """Rearranges a feature `[*S, batch, ..., N]` to [*S, B, P, N]."""
    shape, stack, units = jnp.shape(feature), len(group.stack), len(group.sizes)
    name = f"{kind} {group.name!r} has shape {shape}"
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
        len(group.sizes) == 1 and axes.num_axes - axes.stack == 4
        for axes in group.incoming
    )
    if is_convolution and group.group.spatial_axes is None and len(middle) > 3:
        raise ValueError(
            f"{name}, more axes than a two-dimensional convolution, which is assumed "
            "for a kernel with four axes. Declare its axes: spatial_axes for a "
            "convolution, stack_axes or unit_axes; see UnitGroup."
        )
    if group.positions > 1 and math.prod(middle[1:]) != group.positions:
        raise ValueError(
            f"{name}, but the kernel that reads it flattens {group.positions} "
            f"positions of {group.num_units} units. Pass the activations before "
            "flattening (after pooling), [batch, height, width, units]."
        )
    return jnp.asarray(feature, dtype).reshape(
        *group.stack, -1, group.positions, group.num_units
    )


def _mean_magnitude(
    group: ResolvedGroup,
    all_axes: Sequence[UnitAxes],
    leaves: Sequence[jax.Array],
    dtype: DTypeLike,
) -> jax.Array:
    """Averages |w| over all weights of each unit in the given leaves: [*S, P, N]."""
    total = sum(axes.sum_magnitude(leaves[axes.leaf], dtype) for axes in all_axes)
    num_units = math.prod(group.stack) * group.num_units
    weights = sum(
        leaves[axes.leaf].size // (num_units * axes.positions) for axes in all_axes
    )
    return jnp.asarray(total / weights)


class _Gradients(NamedTuple):
    """The gradients that rules need, of all that `update` was given."""

    leaves: list[jax.Array]  # Of the params, flattened; empty if no rule needs them.
    features: dict[str, jax.Array]  # dL/dh by name of the groups whose rules need it.


def _measure_gradients(
    group: ResolvedGroup, needs: Sequence[str], gradients: _Gradients, dtype: DTypeLike
) -> dict[str, jax.Array]:
    """Returns the gradients among the measurements of a group, by field."""
    measured = {}
    if "incoming_gradient" in needs:
        mean = _mean_magnitude(group, group.incoming, gradients.leaves, dtype)
        measured["incoming_gradient"] = mean[..., 0, :]
    if "activation_gradient" in needs:
        measured["activation_gradient"] = _activations(
            group, gradients.features[group.name], dtype, "Feature gradient"
        )
    return measured


def _over_stack(
    function: Callable[..., PyTree], group: ResolvedGroup
) -> Callable[..., PyTree]:
    """Maps a function of one slice of a group over its stack axes."""
    for _ in group.stack:
        function = jax.vmap(function)
    return function


def _slice_keys(key: jax.Array, stack: tuple[int, ...]) -> jax.Array:
    """Returns one key per slice of a stack: [*S]."""
    return jax.random.split(key, stack) if stack else key


# Drawing.


class _Drawn(NamedTuple):
    """The units of one group that are reset in an update, and their new weights."""

    units: jax.Array  # int32 [*S, N], indices in the first K entries, N where unused.
    mask: jax.Array  # bool [*S, N].
    # For each incoming leaf, the columns of K units; if K is N, an array that
    # broadcasts to the leaf, with new weights at the reset units.
    weights: tuple[jax.Array, ...]
    # int32 [*S, N], as `units` without those reset in part; None if there are none.
    whole_units: jax.Array | None = None

    @property
    def replaced(self) -> jax.Array:
        """The units that are reset completely, as in the state."""
        return self.units if self.whole_units is None else self.whole_units


class _Extent(NamedTuple):
    """Which units of one group are reset in an update, and how far."""

    units: UnitMask  # Units that change.
    whole: jax.Array  # bool [*S, N], units that are reset completely.
    fraction: jax.Array | None  # [*S, N], how far; 0 for others. None if all wholly.

    @classmethod
    def of(cls, chosen: UnitMask, fraction: jax.Array | None) -> Self:
        """Describes the reset of chosen units by a fraction [*S, N]."""
        if fraction is None:
            return cls(chosen, chosen.mask, None)
        is_reset = chosen.mask & (fraction > 0)
        fraction = jnp.where(is_reset, jnp.minimum(fraction, 1), 0)
        return cls(UnitMask(is_reset), fraction == 1, fraction)


def _reset_wholly(units: jax.Array, fraction: jax.Array) -> jax.Array:
    """Returns the indices of units [*S, K] whose fraction, of [*S, N], is 1."""
    own = jnp.take_along_axis(fraction, units, axis=-1, mode="clip")
    return jnp.where(own >= 1, units, fraction.shape[-1])


def _reset_units(group: ResolvedGroup, rule: Rule, drawn: _Drawn) -> UnitMask:
    """Returns the units that are reset, in part or wholly."""
    is_alone = not group.stack and _most(rule, group) == 1
    return UnitMask(drawn.mask, drawn.units[0] if is_alone else None)


def _no_units(group: ResolvedGroup) -> jax.Array:
    """Returns the indices, int32 [*S, N], for an update that resets no unit."""
    return jnp.full((*group.stack, group.num_units), group.num_units, jnp.int32)


def _most(rule: Rule, group: ResolvedGroup) -> int:
    """Returns K, the largest number of the group's units reset in one update."""
    return group.num_units if rule.most is None else rule.most(group.num_units)


def _any_due(due: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(
        jnp.logical_or, [jnp.any(number > 0) for number in due.values()]
    )


def _draw_if_due(
    groups: Sequence[ResolvedGroup],
    rules: Mapping[str, Rule],
    initializer: Initializer,
    choices: Mapping[str, Choice],
    unit_states: Mapping[str, PyTree],
    newborns: Mapping[str, PyTree],
    rng_key: jax.Array,
    num_replaced: Mapping[str, jax.Array],
    leaves: Sequence[jax.Array],
    draw: str,
) -> tuple[dict[str, _Drawn], dict[str, PyTree], jax.Array, dict[str, jax.Array]]:
    """Turns choices into units and fresh weights, if any unit is due or in any case.

    Args:
      groups: all groups.
      rules: rule of each group, by name.
      initializer: initializer of groups without their own.
      choices: choices by group name; score [*S, N] and number [*S].
      unit_states: state of the units by group name.
      newborns: that of new units, by name of the groups whose state is to be reset.
      rng_key: the state's key.
      num_replaced: number of units reset before, by group name.
      leaves: the params, flattened; only shapes and dtypes matter.
      draw: see `continual_backprop`.

    Returns:
      What is drawn for each group that is not frozen; the state of the units with the
      reset ones newborn; the next key, which is the old one if no unit is due, so that
      a lane does not depend on its neighbors; and the number of units reset so far.
    """
    live = {n: group for n, group in enumerate(groups) if not group.group.frozen}
    if not live:
        return {}, {}, rng_key, dict(num_replaced)
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
    bounds = {group.name: _most(rules[group.name], group) for group in live.values()}
    # `work` outlives the trace, so it must not keep a reference to a traced rate.
    live = {
        n: group._replace(group=group.group._replace(replacement_rate=None))
        for n, group in live.items()
    }

    def work(operand: PyTree) -> PyTree:
        scores, due, fractions, unit_states, newborns, rng_key, num_replaced = operand
        found = _find_units(scores, due, bounds)
        # Without the barrier a GPU finds the units again in each kernel that writes
        # weights, and copies what it needs for that before it is overwritten.
        units = lax.optimization_barrier(found)
        fresh_key = jax.random.fold_in(rng_key, _FRESH_WEIGHTS)
        drawn, reborn, num_replaced = {}, {}, dict(num_replaced)
        for index, group in live.items():
            name = group.name
            draw_slice = functools.partial(
                _draw_slice, group, group.group.initializer or initializer, shapes
            )
            drawn[name] = _over_stack(draw_slice, group)(
                units[name],
                _slice_keys(jax.random.fold_in(fresh_key, index), group.stack),
            )
            is_used = found[name] < group.num_units
            if fractions[name] is not None:
                whole = _reset_wholly(drawn[name].units, fractions[name])
                drawn[name] = drawn[name]._replace(whole_units=whole)
                is_used = whole < group.num_units
            num_replaced[name] += jnp.sum(is_used, axis=-1, dtype=jnp.int32)
            if name in newborns:
                extent = _Extent.of(UnitMask(drawn[name].mask), fractions[name])
                reborn[name] = _reborn(unit_states[name], newborns[name], extent.whole)
        next_key = jax.random.fold_in(rng_key, _NEXT_KEY)
        next_key = next_key_if(_any_due(due), next_key, rng_key)
        return drawn, reborn, next_key, num_replaced

    def skip(operand: PyTree) -> PyTree:
        _, _, fractions, unit_states, _, rng_key, num_replaced = operand
        drawn, *_ = jax.eval_shape(work, operand)
        drawn = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), drawn)
        for group in live.values():
            none = _no_units(group)
            drawn[group.name] = drawn[group.name]._replace(units=none)
            if fractions[group.name] is not None:
                drawn[group.name] = drawn[group.name]._replace(whole_units=none)
        return drawn, unit_states, rng_key, dict(num_replaced)

    scores = {group.name: choices[group.name].score for group in live.values()}
    due = {group.name: choices[group.name].number for group in live.values()}
    fractions = {group.name: choices[group.name].fraction for group in live.values()}
    own_states = {name: unit_states[name] for name in newborns}
    operand = (
        *(scores, due, fractions, own_states, dict(newborns), rng_key),
        dict(num_replaced),
    )
    is_little = sum(leaf.size for leaf in leaves) <= _SMALL and all(
        bounds[group.name] <= _FEW
        and draws_unit_by_unit(group.group.initializer or initializer)
        for group in live.values()
    )
    if draw == "always":
        return work(operand)
    always_on_gpu = draw == "auto" and is_little
    return cond_any_lane(
        _any_due(due), work, skip, operand, always_on_gpu=always_on_gpu
    )


def _find_units(
    scores: Mapping[str, jax.Array],
    due: Mapping[str, jax.Array],
    bounds: Mapping[str, int],
) -> dict[str, jax.Array]:
    """Finds the units of lowest score of each group.

    Of equal scores the lowest index comes first; inf and NaN are never among them.

    Args:
      scores: floating [*S, N].
      due: how many units to find, int32 [*S].
      bounds: K.

    Returns:
      Indices int32 [*S, K], N where unused.
    """
    scores = {
        name: jnp.where(jnp.isnan(score), jnp.inf, score)
        for name, score in scores.items()
    }
    alone = [name for name in scores if bounds[name] == 1]
    minima = dict(
        zip(alone, first_minima([scores[name] for name in alone]), strict=True)
    )
    found = {}
    for name, score in scores.items():
        if name in minima:
            value, units = (array[..., None] for array in minima[name])
        else:
            negative, units = lax.top_k(-score, bounds[name])
            value = -negative
        slots = lax.broadcasted_iota(jnp.int32, units.shape, units.ndim - 1)
        is_used = (slots < due[name][..., None]) & (value < jnp.inf)
        found[name] = jnp.where(is_used, units.astype(jnp.int32), score.shape[-1])
    return found


def _draw_slice(
    group: ResolvedGroup,
    initializer: Initializer,
    shapes: Sequence[tuple[tuple[int, ...], DTypeLike]],
    units: jax.Array,
    key: jax.Array,
) -> _Drawn:
    """Draws the weights of the units [K] of one slice."""
    most = units.size
    columns = []
    for index, axes in enumerate(group.incoming):
        shape, dtype = shapes[axes.leaf]
        drawn = _draw_columns(
            initializer, axes, shape, dtype, jax.random.fold_in(key, index), units
        )
        columns.append(axes.lay_out(drawn, shape))
    unused = jnp.full(group.num_units - most, group.num_units, jnp.int32)
    drawn = _Drawn(
        jnp.concatenate([units, unused]),
        _trees.replaced_mask(units, group.num_units),
        tuple(columns),
    )
    if most == group.num_units:  # As large as the leaf: lay only when due.
        drawn = drawn._replace(weights=_lay_slice(group, drawn.weights, units))
    return drawn


def _draw_columns(
    initializer: Initializer,
    axes: UnitAxes,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    key: jax.Array,
    units: jax.Array,
) -> jax.Array:
    """Draws the weights of K units with their distribution in a whole kernel.

    Args:
      initializer: initializer of the group.
      axes: where the units are in an incoming kernel.
      shape: shape of the kernel.
      dtype: dtype of the kernel.
      key: key of this update, group and kernel.
      units: indices of the units, int32 [K], N where unused.

    Returns:
      An array `[*window, fan_in, K]`.
    """
    *leading, num_units = axes.kernel_shape(shape)
    if draws_unit_by_unit(initializer):

        def draw_unit(slot: jax.Array) -> jax.Array:
            slot_key = jax.random.fold_in(key, slot)
            return initializer(slot_key, (*leading, 1), dtype).astype(dtype)

        # One key per unit makes its weights independent of the bound K.
        slots = jnp.arange(units.size, dtype=jnp.uint32)
        return jax.vmap(draw_unit, out_axes=-1)(slots).squeeze(-2)

    def draw(key: jax.Array) -> jax.Array:
        return initializer(key, (*leading, num_units), dtype).astype(dtype)

    # Orthogonal initializers compute a QR decomposition.
    kernel = one_by_one_on_cpu(draw)(key)
    return jnp.take(kernel, units, axis=-1, mode="clip")


def _lay_columns(
    group: ResolvedGroup, rule: Rule, drawn: _Drawn
) -> tuple[jax.Array, ...]:
    """Returns new weights that broadcast to each incoming leaf."""
    most = _most(rule, group)
    if most == group.num_units:
        return drawn.weights  # Already in place.
    lay = _over_stack(functools.partial(_lay_slice, group), group)
    return lay(drawn.weights, drawn.units[..., :most])


def _lay_slice(
    group: ResolvedGroup, columns: Sequence[jax.Array], units: jax.Array
) -> tuple[jax.Array, ...]:
    """Puts K new columns at their units; other columns are arbitrary."""
    slots = None
    if units.size > 1:
        indices = jnp.arange(group.num_units, dtype=units.dtype)
        slots = jnp.argmax(indices[:, None] == units[None], axis=1)
    return tuple(
        axes.put(fresh, slots)
        for axes, fresh in zip(group.incoming, columns, strict=True)
    )


# Writing.


def _transfer_means(
    group: ResolvedGroup,
    lost: jax.Array,
    new_leaves: Sequence[jax.Array],
    update_leaves: Sequence[jax.Array],
) -> list[jax.Array]:
    """Adds the mean contributions of reset units to their consumers' biases.

    Args:
      group: the resolved group.
      lost: mean activations of the reset units, 0 for others, [*S, N].
      new_leaves: the params after the base optimizer's step, flattened.
      update_leaves: the updates, flattened.

    Returns:
      The new updates, flattened.
    """
    update_leaves = list(update_leaves)
    for axes, bias in zip(group.outgoing, group.outgoing_bias, strict=True):
        kernel = new_leaves[axes.leaf].astype(lost.dtype)
        others = tuple(
            axis for axis in range(axes.stack, kernel.ndim) if axis not in axes.outputs
        )
        moved = jnp.sum(kernel * axes.spread(lost), axis=others)
        update = widen(update_leaves[bias], new_leaves[bias])
        update_leaves[bias] = update + moved.reshape(update.shape).astype(update.dtype)
    return update_leaves


def _reborn(unit_state: PyTree, newborn: PyTree, mask: jax.Array) -> PyTree:
    """Resets the state of the units in a mask [*S, N].

    Numbers of the group itself, [*S], do not change.
    """

    def reset(leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        if leaf.ndim < mask.ndim:
            return leaf
        shape = (*mask.shape, *(1,) * (leaf.ndim - mask.ndim))
        return jnp.where(mask.reshape(shape), fresh, leaf).astype(leaf.dtype)

    return jax.tree.map(reset, unit_state, newborn)


# Checks.


def _check_arguments(
    units: Sequence[UnitGroup],
    params: PyTree | None,
    features: Mapping[str, jax.Array] | None,
) -> tuple[tuple[ResolvedGroup, ...], dict[str, jax.Array]]:
    """Resolves the groups and finds their features; ValueError if any is missing."""
    if params is None:
        raise ValueError(
            "The update got no params, but resets need them. Call tx.update(grads, "
            "state, params, features=features)."
        )
    groups = resolve_units(units, params)
    features = {} if features is None else features
    found = {group.name: _find_feature(group, features) for group in groups}
    missing = [name for name, feature in found.items() if feature is None]
    if missing:
        raise ValueError(
            "The update needs the activations of every unit group; missing: "
            f"{missing}, given: {list(features)}. Pass features=features, a dict from "
            "group names to arrays [batch, ..., units]. (apply_gradients of flax's "
            "TrainState drops them; that of cbp_jax.training.TrainState does not.)"
        )
    given = {name: array for name, array in found.items() if array is not None}
    return groups, given


def _find_feature(
    group: ResolvedGroup, features: Mapping[str, jax.Array]
) -> jax.Array | None:
    """Returns the feature of a group, whose name need not include the collection."""
    short = group.name.removeprefix(COLLECTION)
    return features.get(group.name, features.get(short))


def _check_gradients(
    groups: Sequence[ResolvedGroup],
    rules: Mapping[str, Rule],
    params: PyTree,
    updates: PyTree,
    feature_gradients: Mapping[str, jax.Array] | None,
) -> _Gradients:
    """Picks the gradients that rules need; ValueError if any is missing."""
    needed = {name for rule in rules.values() for name in rule.needs}
    given = {} if feature_gradients is None else feature_gradients
    found = {
        group.name: _find_feature(group, given)
        for group in groups
        if "activation_gradient" in rules[group.name].needs
    }
    missing = [name for name, gradient in found.items() if gradient is None]
    if missing:
        raise ValueError(
            "The update needs the gradients of the activations of some unit groups; "
            f"missing: {missing}, given: {list(given)}. Pass feature_gradients, a dict "
            "from group names to the derivatives of the loss with respect to the "
            "features, of the same shapes."
        )
    leaves = []
    if "incoming_gradient" in needed:
        leaves = jax.tree.structure(params).flatten_up_to(updates)
    return _Gradients(
        leaves, {name: array for name, array in found.items() if array is not None}
    )


def _check_transferable(group: ResolvedGroup) -> None:
    """Raises ValueError if a group does not name its consumers' biases."""
    if not group.outgoing_bias:
        raise ValueError(
            f"Unit group {group.name!r} has no outgoing_bias, which transfer_mean "
            "needs. Set outgoing_bias to the biases of its consumers."
        )


def _check_initializer(
    initializer: Initializer, group: ResolvedGroup, leaves: list[jax.Array]
) -> None:
    """Raises ValueError if an initializer cannot draw a group's incoming kernels."""
    for axes in group.incoming:
        leaf = leaves[axes.leaf]
        wanted = axes.kernel_shape(jnp.shape(leaf))

        def draw(
            key: jax.Array,
            shape: tuple[int, ...] = wanted,
            dtype: DTypeLike = leaf.dtype,
        ) -> jax.Array:
            return initializer(key, shape, dtype)

        asked = f"(key, {wanted}, {leaf.dtype})"
        try:
            drawn = jax.eval_shape(draw, jax.random.key(0))
        except Exception as error:
            raise ValueError(
                f"The initializer of unit group {group.name!r} fails for {asked}: "
                f"{error}\nPass a function of key, shape and dtype, like those of "
                "jax.nn.initializers. Wrap one of Haiku's, which takes no key: lambda "
                "key, shape, dtype: hk.transform(lambda: initializer(shape, dtype))"
                ".apply({}, key)."
            ) from error
        if getattr(drawn, "shape", None) != wanted:
            raise ValueError(
                f"The initializer of unit group {group.name!r} returned shape "
                f"{getattr(drawn, 'shape', drawn)} for {asked}, expected {wanted}."
            )


def _check_choice(group: ResolvedGroup, choice: Choice, needs_mean: bool) -> None:
    """Raises ValueError if what a rule returned for a group is not a `Choice`.

    Args:
      group: the resolved group.
      choice: the choice, whose arrays start with the stack axes.
      needs_mean: whether the rule must return the mean activations.
    """
    each = (*group.stack, group.num_units)
    rule = f"The rule of unit group {group.name!r}"
    meaning = "one for each unit"
    check_numbers(f"{rule}: score", choice.score, each, meaning, jnp.floating)
    if choice.fraction is not None:
        name = f"{rule}: fraction"
        check_numbers(name, choice.fraction, each, meaning, jnp.floating)
    if needs_mean:
        mean = choice.mean_activation
        check_numbers(f"{rule}: mean_activation", mean, each, meaning)
    meaning = "the number of units to reset"
    check_numbers(f"{rule}: number", choice.number, group.stack, meaning, jnp.integer)

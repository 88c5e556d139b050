"""The engine: an optax transformation that resets the units that a rule chooses.

Shapes: N units of a group, S stack axes of a group.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax.averages import at_least_float32
from cbp_jax.checks import check_choice
from cbp_jax.initializers import kaiming_uniform
from cbp_jax.keys import key_bits, key_of
from cbp_jax.resets import rewriting, selection
from cbp_jax.resets.arguments import (
    check_arguments,
    check_choice_of_units,
    check_transferable,
)
from cbp_jax.resets.bases import check_base, takes, tolerant
from cbp_jax.resets.drawing import check_initializer
from cbp_jax.resets.measuring import measure
from cbp_jax.resets.meshes import in_auto_mode
from cbp_jax.resets.moments import check_resettable, forget_loss, reset_moments
from cbp_jax.resets.resolution import ResolvedGroup, resolve_units
from cbp_jax.resets.rule import Rule
from cbp_jax.resets.selection import over_stack
from cbp_jax.resets.units import Initializer, PyTree, UnitGroup, as_groups


class UnitResetState(NamedTuple):
    """State of `reset_by_rule`, and so of every rule's transformation."""

    base_state: PyTree  # The base optimizer's state.
    units: dict[str, Any]  # The rule's state of each group, by name.
    rng_key: jax.Array  # Bits of a key, uint32; others when a unit is reset.
    replaced: dict[str, jax.Array]  # int32 [*S, N], reset last time, N where unused.
    num_replaced: dict[str, jax.Array]  # int32 [*S], units reset since `init`.
    count: jax.Array  # int32 scalar, updates since `init`.


def reset_by_rule(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    rule: Rule | Callable[[UnitGroup], Rule],
    *,
    initializer: Initializer | None = None,
    key: jax.Array,
    moments: str = "zero",
    keep_state: Sequence[str] = (),
    transfer_mean: bool = False,
    between_reset: str = "fresh",
    frozen: Callable[[UnitGroup], bool] = lambda group: group.replacement_rate == 0,
) -> optax.GradientTransformationExtraArgs:
    """Base optimizer, followed by a reset of the units that a rule chooses.

    At each update, after the base optimizer's step, the rule sees each group's
    `Measurements` and chooses. A chosen unit's incoming weights are drawn afresh, its
    biases and outgoing weights become 0, its normalization scale 1 and shift 0, the
    base optimizer's moments and the rule's own state what they are at birth. All groups
    are measured first, then rewritten in order.

    The returned updates are those of the base optimizer, except on reset entries, where
    they lead to the new value. Nothing that scales updates may be chained after it.
    An update of a narrower dtype than its param is returned in one that holds both, so
    that gradients of bfloat16 reset params of float32 exactly.

    Args:
      base_optimizer: an optax transformation that moves the params at every call,
        since units age at every call. `apply_every`, `MultiSteps`,
        `conditionally_mask` and the transparent mode of `contrib.sam` are refused, and
        so is what is seen to do the like in a trial on params of one entry a leaf;
        `apply_if_finite` is not, whose refused updates count as updates. With `moments`
        "zero" a base is refused, too, if in such a trial its steps after a reset are
        more than ten times as long as any before, such as those of `contrib.acprop`,
        which divides by a moment that is 0 then. The update passes it `features`,
        `unit_ages` and other extra arguments, see `continual_backprop`.
      units: groups of hidden units, or the names of a chain's layers, see
        `sequential_units`.
      rule: the rule of every group, or a function that gives a group's.
      initializer: see `continual_backprop`.
      key: PRNG key of fresh weights and of random choices. Under `vmap` keys of "rbg"
        make a lane depend on those beside it, see `continual_backprop`.
      moments: see `continual_backprop`.
      keep_state: see `continual_backprop`.
      transfer_mean: see `continual_backprop`; the rule's choices must hold
        `mean_activation`.
      between_reset: what a weight from one reset unit to another becomes that is reset
        in the same update: "fresh" if its reader's group comes later in `units`, as in
        continual backprop's code, which rewrites layer after layer; or "zero", where
        all incoming weights are drawn first and all outgoing ones zeroed then.
      frozen: whether it is known in advance that a group never loses a unit. By default
        groups of `replacement_rate` 0; other rates mean nothing here.

    Returns:
      An `optax.GradientTransformationExtraArgs` of state `UnitResetState`. Its update
      needs `params` and the keyword `features`, see `continual_backprop`.

    Raises:
      ValueError: as `continual_backprop`; a score, a number or a mean activation of
        the rule's choice has a wrong shape or dtype, at `update`.
    """
    units = as_groups(units)
    initializer = kaiming_uniform("relu") if initializer is None else initializer
    check_choice("moments", moments, ("zero", "keep"))
    check_choice("between_reset", between_reset, ("fresh", "zero"))
    base_optimizer = optax.with_extra_args_support(base_optimizer)

    def rule_of(group: UnitGroup) -> Rule:
        return rule if isinstance(rule, Rule) else rule(group)

    def initializer_of(group: ResolvedGroup) -> Initializer:
        return group.group.initializer or initializer

    def most(groups: Sequence[ResolvedGroup]) -> dict[str, int]:
        bounds = {}
        for group in groups:
            bound = rule_of(group.group).most
            bounds[group.name] = bound(group.num_units) if bound else group.num_units
        return bounds

    def newborn(group: ResolvedGroup, leaves: Sequence[jax.Array]) -> Any:
        dtype = at_least_float32(leaves[group.incoming[0].leaf].dtype)
        state = rule_of(group.group).init(group.num_units, dtype)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*group.stack, *leaf.shape)), state
        )

    def init(params: PyTree) -> UnitResetState:
        if not jax.tree.leaves(params):
            return placeholder(params)
        groups = resolve_units(units, params)
        if transfer_mean:
            check_transferable(groups)
        if moments == "zero":
            check_resettable(base_optimizer, params, keep_state)
        leaves = jax.tree.leaves(params)
        for group in groups:
            if not frozen(group.group):
                check_initializer(initializer_of(group), group, leaves)
        base_state = base_optimizer.init(params)
        check_base(base_optimizer, base_state, params, moments, keep_state)
        return UnitResetState(
            base_state=base_state,
            units={group.name: newborn(group, leaves) for group in groups},
            rng_key=key_bits(key),
            replaced={group.name: selection.nobody(group) for group in groups},
            num_replaced={
                group.name: jnp.zeros(group.stack, jnp.int32) for group in groups
            },
            count=jnp.zeros((), jnp.int32),
        )

    def placeholder(params: PyTree) -> UnitResetState:
        """Returns the state's structure; `optax.tree.map_params` has no params."""
        none = jnp.zeros((), jnp.int32)
        return UnitResetState(
            base_state=base_optimizer.init(params),
            units={group.name: rule_of(group).init(1, jnp.float32) for group in units},
            rng_key=key_bits(key),
            replaced={group.name: none for group in units},
            num_replaced={group.name: none for group in units},
            count=none,
        )

    def reset(
        groups: Sequence[ResolvedGroup],
        updates: PyTree,
        state: UnitResetState,
        params: PyTree,
        activations: Mapping[str, jax.Array],
    ) -> tuple[PyTree, UnitResetState]:
        """Resets what the rule chooses, after the base optimizer's step."""
        leaves, treedef = jax.tree.flatten(params)
        new_leaves = jax.tree.leaves(optax.apply_updates(params, updates))
        rng_key = key_of(state.rng_key, key)
        keys = selection.step_keys(rng_key, state.units[groups[0].name].age, groups)
        unit_states, choices = {}, {}
        for group in groups:
            name = group.name
            unit_state = state.units[name]
            dtype = at_least_float32(leaves[group.incoming[0].leaf].dtype)
            age = optax.safe_increment(unit_state.age)
            measured = measure(
                group,
                activations[name],
                new_leaves,
                age,
                state.count,
                keys[name],
                dtype,
            )
            update_rule = over_stack(rule_of(group.group).update, len(group.stack))
            unit_states[name], choices[name] = update_rule(
                unit_state._replace(age=age), measured
            )
            check_choice_of_units(group, choices[name], transfer_mean)
        # Left out altogether, a frozen group is the base optimizer's to the last bit:
        # even a select that takes every update changes how XLA rounds `p + update`.
        live = [group for group in groups if not frozen(group.group)]
        bounds = most(live)
        replacements, rng_key = selection.select_and_draw(
            live,
            [group.name for group in groups],
            choices,
            bounds,
            initializer_of,
            rng_key,
            leaves,
        )
        update_leaves = treedef.flatten_up_to(updates)
        for group in live:
            mask = replacements[group.name].mask
            if transfer_mean:
                mean = choices[group.name].mean_activation
                update_leaves = rewriting.transfer_means(
                    group, mask, mean, new_leaves, update_leaves
                )
            unit_states[group.name] = _reborn(
                unit_states[group.name], newborn(group, leaves), mask
            )
        update_leaves = rewriting.rewrite_updates(
            live, replacements, between_reset, leaves, update_leaves
        )
        updates = treedef.unflatten(update_leaves)
        masks = {name: found.mask for name, found in replacements.items()}
        base_state = forget_loss(state.base_state, masks)
        if moments == "zero":
            new_params = optax.apply_updates(params, updates)
            base_state = reset_moments(
                base_optimizer, base_state, new_params, live, masks, keep_state
            )
        replaced = {group.name: selection.nobody(group) for group in groups}
        num_replaced = dict(state.num_replaced)
        for group in live:
            name, found = group.name, replacements[group.name].units
            unused = replaced[name][..., found.shape[-1] :]
            replaced[name] = jnp.concatenate([found, unused], axis=-1)
            num_replaced[name] += jnp.sum(
                found < group.num_units, axis=-1, dtype=jnp.int32
            )
        return updates, UnitResetState(
            base_state,
            unit_states,
            key_bits(rng_key),
            replaced,
            num_replaced,
            optax.safe_increment(state.count),
        )

    def update(
        updates: PyTree,
        state: UnitResetState,
        params: PyTree | None = None,
        *,
        features: Mapping[str, jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, UnitResetState]:
        groups, activations = check_arguments(units, params, features)
        own_args = {
            "features": features,
            "unit_ages": {name: unit.age for name, unit in state.units.items()},
        }
        if "value_fn" in extra_args:
            value_fn = tolerant(extra_args["value_fn"], list(own_args))
            extra_args = extra_args | {"value_fn": value_fn}
        taken = {n: arg for n, arg in own_args.items() if takes(base_optimizer, n)}
        updates, base_state = base_optimizer.update(
            updates, state.base_state, params, **taken, **extra_args
        )
        before = updates, state._replace(base_state=base_state)
        return in_auto_mode(functools.partial(reset, groups), before)(
            *before, params, activations
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _reborn(unit_state: Any, newborn: Any, mask: jax.Array) -> Any:
    """Gives the units of a mask [*S, N] the state of newborn ones.

    Numbers of the group itself, [*S], stay.
    """

    def reset(leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        if leaf.ndim < mask.ndim:
            return leaf
        shape = (*mask.shape, *(1,) * (leaf.ndim - mask.ndim))
        return jnp.where(mask.reshape(shape), fresh, leaf)

    return jax.tree.map(reset, unit_state, newborn)

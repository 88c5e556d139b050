"""Continual backprop as an optax gradient transformation.

Shapes: N units of a group, K units of a group replaced at most in one step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax import replacement, rewriting, utility
from cbp_jax.initializers import kaiming_uniform
from cbp_jax.moments import check_resettable, reset_moments
from cbp_jax.resolution import ResolvedGroup, resolve_units
from cbp_jax.settings import Settings, check_choice
from cbp_jax.unit_state import UnitState, initial_state, reborn
from cbp_jax.units import Initializer, PyTree, UnitGroup


class ContinualBackpropState(NamedTuple):
    """State of `continual_backprop` and `replace_units`."""

    base_state: PyTree  # The base optimizer's state.
    units: dict[str, UnitState]  # By group name.
    rng_key: jax.Array  # Typed key; changes when a unit is replaced.
    replaced: dict[str, jax.Array]  # int32 [K], replaced last time, N where unused.


def continual_backprop(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    replacement_rate: float | jax.Array = 1e-4,
    decay_rate: float | jax.Array = 0.99,
    maturity_threshold: int | float | jax.Array = 100,
    utility_fn: utility.UtilityFn = utility.overall,
    initializer: Initializer | None = None,
    key: jax.Array,
    budget: str = "accumulate",
    count: str = "eligible",
    max_per_step: int | None = None,
    bias_correction: bool = True,
    moments: str = "zero",
    keep_state: Sequence[str] = (),
    transfer_mean: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by the replacement of mature units of low utility.

    At each update, after the base optimizer's step, every unit `i` ages by one and its
    utility is averaged, with :math:`h` the activations from before the step, weights
    :math:`w` from after it, and :math:`a_i` the age,

    .. math::
      f_i &\leftarrow \eta f_i + (1 - \eta) h_i, \quad
        \hat f_i = f_i / (1 - \eta^{a_i}) \\
      u_i &\leftarrow \eta u_i + (1 - \eta) y_i(h, \hat f, w), \quad
        \hat u_i = u_i / (1 - \eta^{a_i})

    where :math:`y` is `utility_fn`. Units with :math:`a_i > m` are eligible. On average
    `replacement_rate` x eligible units of the group with the lowest :math:`\hat u` are
    replaced: incoming weights are drawn afresh, biases and outgoing weights become 0,
    and so do utility, mean activation and age. All groups are measured first, then
    rewritten in order.

    The returned updates are those of the base optimizer, except on reset entries, where
    they lead to the new value. Nothing that scales updates may be chained after it.
    Build the transformation inside a vmapped function if every lane is to have its own
    `key` or hyper-parameters; all numbers may be traced arrays.

    Example::

      units = cbp_jax.sequential_units(("dense_0", "dense_1", "head"))
      tx = cbp_jax.continual_backprop(optax.sgd(3e-3), units, key=jax.random.key(0))
      state = tx.init(params)
      updates, state = tx.update(grads, state, params, features=features)
      params = optax.apply_updates(params, updates)

    Args:
      base_optimizer: any optax transformation. The update passes it `features`,
        `unit_ages` (see `cbp_jax.optimizers.adam_with_unit_counts`) and all other extra
        arguments, if it takes extra arguments.
      units: groups of hidden units, see `sequential_units`.
      replacement_rate: fraction of eligible units replaced per update, in [0, 1]. 0 is
        the base optimizer, bit for bit.
      decay_rate: :math:`\eta`, of both running averages, in [0, 1).
      maturity_threshold: :math:`m`, in updates; infinity replaces nobody.
      utility_fn: instantaneous utility, see `cbp_jax.utility`.
      initializer: `jax.nn.initializers`-style function of fresh incoming weights,
        called with `[..., fan_in, 1]` for each unit; give the one that the network was
        initialized with. One that looks at fan-out needs
        `cbp_jax.initializers.full_width`. None is `kaiming_uniform("relu")`.
      key: typed PRNG key of fresh weights and random utilities.
      budget: "accumulate" carries the fraction of a unit that is due over to the next
        step, "bernoulli" replaces one more unit with that probability. Whole units that
        are due but cannot be replaced, because fewer are eligible or because of
        `max_per_step`, are forgotten.
      count: "eligible" makes rate x eligible units due in a step, "all" rate x N as
        soon as any unit of the group is eligible.
      max_per_step: static bound K on the units of a group replaced in one step; None is
        max(1, ceil(rate x N)), which never binds. Needed where the rate is traced.
      bias_correction: rank by the age-corrected utility; False ranks by :math:`u`
        itself, which makes units that have just matured look bad unless the maturity
        threshold is long against 1 / (1 - decay_rate).
      moments: "zero" resets the base optimizer's moments of reborn units, to what its
        `init` gives; "keep" leaves them. Arrays of the base state that are not shaped
        like a param (step counts, Adafactor's factors, Shampoo's matrices) are always
        left. A global step count then makes Adam's first steps of a reborn unit too
        long: `cbp_jax.optimizers.adam_with_unit_counts` does not have this fault.
      keep_state: names of fields of the base state not to reset although they are
        shaped like the params, for example `("init_params",)` of `optax.contrib.dog`.
      transfer_mean: add a replaced unit's mean activation times its outgoing weights to
        its consumers' biases (`UnitGroup.outgoing_bias`). Not in the paper.

    Returns:
      An `optax.GradientTransformationExtraArgs` of state `ContinualBackpropState`. Its
      update needs `params` and the keyword `features`: a mapping from each group's name
      to the activations of this step's batch, `[batch, ..., N]`; other entries are
      ignored. Inside `optax.MultiSteps` ages count optimizer updates, and utilities see
      the features of the last mini-batch.

    Raises:
      ValueError: an option out of range or unknown, when built; a group that does not
        fit the params, at `init`; missing params or features, or features of a wrong
        shape, at `update`.

    References:
      Dohare et al., `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature 632, 2024, Algorithm 1;
      preprint `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_.
    """
    units = tuple(units)
    settings = Settings(
        replacement_rate=replacement_rate,
        decay_rate=decay_rate,
        maturity_threshold=maturity_threshold,
        utility_fn=utility_fn,
        initializer=kaiming_uniform("relu") if initializer is None else initializer,
        budget=budget,
        count=count,
        max_per_step=max_per_step,
        bias_correction=bias_correction,
    )
    settings.check(units)
    check_choice("moments", moments, ("zero", "keep"))
    base_optimizer = optax.with_extra_args_support(base_optimizer)

    def init(params: PyTree) -> ContinualBackpropState:
        groups = resolve_units(units, params)
        if transfer_mean:
            _check_transferable(groups)
        if moments == "zero":
            check_resettable(base_optimizer, params)
        return ContinualBackpropState(
            base_state=base_optimizer.init(params),
            units={group.name: initial_state(group, params) for group in groups},
            rng_key=jnp.copy(key),  # The caller's key survives a donated state.
            replaced=replacement.nobody(settings, groups),
        )

    def update(
        updates: PyTree,
        state: ContinualBackpropState,
        params: PyTree | None = None,
        *,
        features: Mapping[str, jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ContinualBackpropState]:
        if params is None:
            raise ValueError(
                "continual_backprop needs the params: tx.update(grads, state, params, "
                "features=features)."
            )
        groups = resolve_units(units, params)
        _check_features(groups, features)
        updates, base_state = base_optimizer.update(
            updates,
            state.base_state,
            params,
            features=features,
            unit_ages={
                name: unit_state.age for name, unit_state in state.units.items()
            },
            **extra_args,
        )
        leaves, treedef = jax.tree.flatten(params)
        new_leaves = jax.tree.leaves(optax.apply_updates(params, updates))
        keys = replacement.step_keys(state.rng_key, state.units[groups[0].name], groups)
        measured = {
            group.name: replacement.measure(
                settings,
                group,
                state.units[group.name],
                features[group.name],
                new_leaves,
                keys[group.name],
            )
            for group in groups
        }
        # Left out altogether, a frozen group is the base optimizer's to the last bit:
        # even a select that takes every update changes how XLA rounds `p + update`.
        live = [group for group in groups if settings.may_replace(group)]
        replaced, fresh, rng_key = replacement.select_and_draw(
            settings, live, measured, state.rng_key, leaves
        )
        masks = {
            group.name: rewriting.replaced_mask(replaced[group.name], group.num_units)
            for group in live
        }
        update_leaves = treedef.flatten_up_to(updates)
        for group in live:
            mask = masks[group.name]
            if transfer_mean:
                mean = measured[group.name].mean_activation
                update_leaves = rewriting.transfer_means(
                    group, mask, mean, new_leaves, update_leaves
                )
            update_leaves = rewriting.rewrite_updates(
                group,
                mask,
                replaced[group.name],
                fresh[group.name],
                leaves,
                update_leaves,
            )
        updates = treedef.unflatten(update_leaves)
        if moments == "zero":
            new_params = optax.apply_updates(params, updates)
            base_state = reset_moments(
                base_optimizer, base_state, new_params, live, masks, keep_state
            )
        unit_states = {name: group.state for name, group in measured.items()}
        for name, mask in masks.items():
            unit_states[name] = reborn(unit_states[name], mask)
        replaced = replacement.nobody(settings, groups) | replaced
        return updates, ContinualBackpropState(
            base_state, unit_states, rng_key, replaced
        )

    return optax.GradientTransformationExtraArgs(init, update)


def replace_units(
    units: Sequence[UnitGroup], **options: Any
) -> optax.GradientTransformationExtraArgs:
    """The same algorithm as the last link of an `optax.chain`.

    Example::

      tx = optax.chain(optax.adam(1e-3), cbp_jax.replace_units(units, key=key))
      updates, state = tx.update(grads, state, params, features=features)

    The links before it cannot be reached from here, so no moments are reset.

    Args:
      units: as for `continual_backprop`.
      **options: as for `continual_backprop`.

    Returns:
      As `continual_backprop`.
    """
    return continual_backprop(optax.identity(), units, **options)


def _check_transferable(groups: Sequence[ResolvedGroup]) -> None:
    for group in groups:
        if not group.outgoing_bias:
            raise ValueError(
                f"transfer_mean needs the biases of the consumers of unit group "
                f"{group.name!r}; give them as outgoing_bias."
            )


def _check_features(
    groups: Sequence[ResolvedGroup], features: Mapping[str, jax.Array] | None
) -> None:
    names = [group.name for group in groups]
    given = [] if features is None else list(features)
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"continual_backprop needs the activations of every unit group; missing: "
            f"{missing}, given: {given}. Pass the update a mapping of names to arrays "
            "[batch, ..., units]: features=features."
        )

"""New values for replaced units: in the updates, and in any tree like the params.

Shapes: N units of a group, S stack axes, K replaced at most in one step.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cbp_jax.resets.places import Place
from cbp_jax.resets.resolution import ResolvedGroup, resolve_units
from cbp_jax.resets.selection import Replacement, replaced_mask
from cbp_jax.resets.units import PyTree, UnitGroup
from cbp_jax.steps import lead_to, widen


def reset_units(
    tree: PyTree,
    units: Sequence[UnitGroup],
    replaced: Mapping[str, jax.Array],
    fresh: PyTree | None = None,
) -> PyTree:
    """Resets the entries of replaced units in any tree shaped like the params.

    For per-unit state that the transform does not own: an average of the params, a
    gradient accumulator, eligibility traces. The entries are the units' columns of
    `incoming`, their rows of `outgoing`, their biases and normalization parameters.

    Args:
      tree: pytree with the structure and shapes of the params.
      units: the groups given to the transform.
      replaced: for each group's name the indices of its replaced units, int32 [*S, K],
        with N where unused: the state's `replaced`. Groups not named are left.
      fresh: tree to take the entries' new values from; None sets them to 0.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: a group does not fit the tree, see `continual_backprop`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    fresh_leaves = None if fresh is None else treedef.flatten_up_to(fresh)
    for group in resolve_units(units, tree):
        if group.name not in replaced:
            continue
        mask = replaced_mask(replaced[group.name], group.num_units)
        for place in group.places:
            leaf = leaves[place.leaf]
            value = 0 if fresh_leaves is None else fresh_leaves[place.leaf]
            value = jnp.asarray(value, leaf.dtype)
            leaves[place.leaf] = jnp.where(place.spread(mask), value, leaf)
    return treedef.unflatten(leaves)


def rewrite_updates(
    groups: Sequence[ResolvedGroup],
    replacements: Mapping[str, Replacement],
    between_reset: str,
    leaves: Sequence[jax.Array],
    update_leaves: Sequence[jax.Array],
) -> list[jax.Array]:
    """Makes the updates lead the replaced units of all groups to their new weights.

    A select is fused into the update and costs no pass over memory; a scatter would
    have to write the updates out first.

    Args:
      groups: the resolved groups, in the order of rewriting.
      replacements: by group name the replaced units and their weights.
      between_reset: see `reset_by_rule`.
      leaves: the params before the step, flattened.
      update_leaves: the updates, flattened.

    Returns:
      The new updates, flattened; each has at least the dtype of its param.
    """
    update_leaves = list(update_leaves)

    def lead(group: ResolvedGroup, place: Place, value: jax.Array) -> None:
        update_leaves[place.leaf] = lead_to(
            value,
            place.spread(replacements[group.name].mask),
            update_leaves[place.leaf],
            leaves[place.leaf],
        )

    def renew(group: ResolvedGroup) -> None:
        fresh = replacements[group.name].weights
        for place, weights in zip(group.incoming, fresh, strict=True):
            lead(group, place, weights)
        for place, value in zip(group.vectors, group.vector_values, strict=True):
            lead(group, place, jnp.asarray(value, leaves[place.leaf].dtype))

    def silence(group: ResolvedGroup) -> None:
        for place in group.outgoing:
            lead(group, place, jnp.zeros((), leaves[place.leaf].dtype))

    for group in groups:
        renew(group)
        if between_reset == "fresh":
            silence(group)
    if between_reset == "zero":
        for group in groups:
            silence(group)
    return update_leaves


def transfer_means(
    group: ResolvedGroup,
    mask: jax.Array,
    mean_activation: jax.Array,
    new_leaves: Sequence[jax.Array],
    update_leaves: Sequence[jax.Array],
) -> list[jax.Array]:
    """Adds what replaced units gave on average to their consumers' biases.

    Args:
      group: the resolved group.
      mask: its replaced units, bool [*S, N].
      mean_activation: its corrected mean activations, [*S, N].
      new_leaves: the params after the base optimizer's step, flattened.
      update_leaves: the updates, flattened.

    Returns:
      The new updates, flattened.
    """
    update_leaves = list(update_leaves)
    lost = jnp.where(mask, mean_activation, 0)
    for place, bias in zip(group.outgoing, group.outgoing_bias, strict=True):
        kernel = new_leaves[place.leaf].astype(lost.dtype)
        others = tuple(
            axis
            for axis in range(place.stack, kernel.ndim)
            if axis not in place.outputs
        )
        moved = jnp.sum(kernel * place.spread(lost), axis=others)
        update = widen(update_leaves[bias], new_leaves[bias])
        update_leaves[bias] = update + moved.reshape(update.shape).astype(update.dtype)
    return update_leaves

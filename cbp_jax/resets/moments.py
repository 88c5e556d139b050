"""Resets a base optimizer's state at the entries of reborn units."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax.resets.leaves import key_string
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.units import PyTree


def reset_moments(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    new_params: PyTree,
    groups: Sequence[ResolvedGroup],
    masks: Mapping[str, jax.Array],
    keep: Sequence[str] = (),
) -> PyTree:
    """Gives reborn units the optimizer state that they would have been born with.

    Every array of the state that belongs to a param and has its shape takes, at the
    entries of replaced units, the value that `base_optimizer.init(new_params)` puts
    there: 0 for momentum and Adam's moments, Adagrad's initial accumulator, the new
    weight itself for a second copy of the params such as the `z` of schedule-free SGD.

    Args:
      base_optimizer: the transformation that the state belongs to.
      base_state: its state.
      new_params: the params after the reset.
      groups: the resolved unit groups.
      masks: for each group's name which units were replaced, bool [*S, N].
      keep: names of fields of the state that are left as they are.

    Returns:
      A state like `base_state`.

    Raises:
      ValueError: optax cannot tell which arrays of the state belong to params.
    """
    owners = _owners(base_optimizer, base_state, new_params, keep)
    places = [(place, masks[group.name]) for group in groups for place in group.places]
    param_shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(new_params)]

    def reset(owner: int, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        if owner < 0 or jnp.shape(leaf) != param_shapes[owner]:
            return leaf
        for place, mask in places:
            if place.leaf == owner:
                leaf = jnp.where(place.spread(mask), fresh.astype(leaf.dtype), leaf)
        return leaf

    return jax.tree.map(reset, owners, base_state, base_optimizer.init(new_params))


def check_resettable(
    base_optimizer: optax.GradientTransformation, params: PyTree
) -> None:
    """Raises the ValueError of `reset_moments` early, when a state is initialized."""
    _owners(base_optimizer, jax.eval_shape(base_optimizer.init, params), params, ())


def check_counts_updates(base_state: PyTree) -> None:
    """Raises ValueError for a base optimizer that only updates now and then."""

    def is_accumulating(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    if any(
        is_accumulating(node)
        for node in jax.tree.leaves(base_state, is_leaf=is_accumulating)
    ):
        raise ValueError(
            "The base optimizer contains optax.MultiSteps, so units would age and be "
            "replaced at every mini-batch and not at every update. Put MultiSteps "
            "around: optax.MultiSteps(continual_backprop(base_optimizer, ...), k)."
        )


def _owners(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    params: PyTree,
    keep: Sequence[str],
) -> PyTree:
    """Replaces each array of the state by the index of its param, -1 for no param."""
    treedef = jax.tree.structure(params)
    indices = treedef.unflatten(range(treedef.num_leaves))
    try:
        owners = optax.tree.map_params(
            base_optimizer,
            lambda leaf, index: leaf if _is_masked(leaf) else index,
            base_state,
            indices,
            transform_non_params=lambda _: -1,
            is_leaf=_is_masked,
        )
    except Exception as error:
        raise ValueError(
            "optax.tree.map_params cannot tell which arrays of the base optimizer's "
            "state belong to params, so the moments of replaced units cannot be reset. "
            'Pass moments="keep" to leave the state as it is.'
        ) from error
    param_paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]

    def keep_named(path: Sequence[Any], owner: int) -> int:
        # The params' own names do not count: a layer may be called `mu`.
        own = len(path) - len(param_paths[owner]) if owner >= 0 else len(path)
        fields = {key_string(key) for key in path[:own]}
        return owner if fields.isdisjoint(keep) else -1

    return jax.tree_util.tree_map_with_path(keep_named, owners)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)

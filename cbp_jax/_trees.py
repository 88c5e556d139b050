"""Resets of units in any tree: in one like the params, in statistics, in moments.

Shapes: N units of a group, S stack axes, K units reset at most in one update.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax._units import PyTree, ResolvedGroup, UnitGroup, path_string, resolve_units

Masks = Sequence[tuple[ResolvedGroup, jax.Array]]
"""Resolved groups, and which of the units of each are reset, bool [*S, N]."""


def replaced_mask(replaced: jax.Array, num_units: int) -> jax.Array:
    """Turns indices int32 [*S, K], N where unused, into a mask bool [*S, N]."""
    indices = jnp.arange(num_units, dtype=replaced.dtype)
    return jnp.any(indices[:, None] == replaced[..., None, :], axis=-1)


def spread_masks(masks: Masks, num_leaves: int) -> list[jax.Array | None]:
    """Spreads masks of units over a tree: for each leaf one that broadcasts to it.

    Args:
      masks: of the groups whose units are reset.
      num_leaves: of the params.

    Returns:
      For each leaf of the flattened params a mask of the entries to reset: the units'
      columns of `incoming`, their rows of `outgoing`, their biases and normalization
      parameters. None for a leaf without units.
    """
    spread: list[jax.Array | None] = [None] * num_leaves
    for group, mask in masks:
        for axes in group.all_axes:
            own, others = axes.spread(mask), spread[axes.leaf]
            spread[axes.leaf] = own if others is None else own | others
    return spread


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
    values = [0] * len(leaves) if fresh is None else treedef.flatten_up_to(fresh)
    masks = [
        (group, replaced_mask(replaced[group.name], group.num_units))
        for group in resolve_units(units, tree)
        if group.name in replaced
    ]
    return treedef.unflatten(
        [
            leaf if mask is None else jnp.where(mask, value, leaf)
            for mask, value, leaf in zip(
                spread_masks(masks, len(leaves)), values, leaves, strict=True
            )
        ]
    )


def reset_statistics(
    statistics: PyTree,
    units: Sequence[UnitGroup],
    replaced: Mapping[str, jax.Array],
    newborn: PyTree | None = None,
) -> PyTree:
    """Resets what a network's normalizations remember of replaced units.

    To be called after each update, with the state of a network that has any::

      updates, state = tx.update(grads, state, params, features=features)
      statistics = cbp_jax.reset_statistics(statistics, units, state.replaced)

    Args:
      statistics: the network's collections other than the params, any pytree of arrays
        or `{}`. The leaves that `UnitGroup.statistics` names have the group's N units
        as their last axis.
      units: the groups given to the transform.
      replaced: for each group's name the indices of its replaced units, int32 [*S, K],
        with N where unused: the state's `replaced`. Groups not named are left.
      newborn: tree like `statistics` to take the new values from, such as the network's
        `init` made it. None sets leaves whose path ends in `var` to 1, others to 0.

    Returns:
      A tree like `statistics`.

    Raises:
      ValueError: a path that is not in the statistics, or leaves of one group that do
        not have the same number of units.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(statistics)
    names = [path_string(path) for path, _ in with_paths]
    leaves = [leaf for _, leaf in with_paths]
    if newborn is None:
        values = [1 if name.split("/")[-1] == "var" else 0 for name in names]
    else:
        values = treedef.flatten_up_to(newborn)
    for group in units:
        if group.name not in replaced:
            continue
        for index in _find(group, names, leaves):
            leaf = leaves[index]
            mask = replaced_mask(replaced[group.name], leaf.shape[-1])
            fresh = jnp.asarray(values[index], leaf.dtype)
            leaves[index] = jnp.where(mask, fresh, leaf)
    return treedef.unflatten(leaves)


def _find(
    group: UnitGroup, names: Sequence[str], leaves: Sequence[jax.Array]
) -> list[int]:
    """Returns the indices of a group's leaves, checked."""
    paths = group.statistics or ()
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    found = []
    for path in paths:
        matches = [
            index
            for index, name in enumerate(names)
            if name == path or name.startswith(f"{path}/")
        ]
        if not matches:
            raise ValueError(
                f"Unit group {group.name!r}: statistics path {path!r} is not in the "
                f"statistics, whose leaves are {list(names)}. Pass all collections of "
                "the network but the params."
            )
        found += matches
    shapes = {names[index]: jnp.shape(leaves[index]) for index in found}
    if len({shape[-1:] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"Unit group {group.name!r}: its statistics must all have its units as "
            f"their last axis, got shapes {shapes}."
        )
    return found


def reset_moments(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    new_params: PyTree,
    masks: Masks,
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
      masks: which units of which groups were reset.
      keep: names of fields of the state that are left as they are.

    Returns:
      A state like `base_state`.

    Raises:
      ValueError: optax cannot tell which arrays of the state belong to params.
    """
    owners = _owners(base_optimizer, base_state, new_params, keep)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(new_params)]
    spread = spread_masks(masks, len(shapes))

    def reset(owner: int, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        is_like_param = owner >= 0 and jnp.shape(leaf) == shapes[owner]
        if not is_like_param or spread[owner] is None:
            return leaf
        return jnp.where(spread[owner], fresh, leaf)

    return jax.tree.map(reset, owners, base_state, base_optimizer.init(new_params))


def check_resettable(
    base_optimizer: optax.GradientTransformation, params: PyTree
) -> None:
    """Raises the ValueError of `reset_moments` early, when a state is initialized."""
    _owners(base_optimizer, jax.eval_shape(base_optimizer.init, params), params, ())


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
    return jax.tree_util.tree_map_with_path(
        lambda path, owner: -1 if _mentions(path, keep) else owner, owners
    )


def _mentions(path: Sequence[Any], names: Sequence[str]) -> bool:
    return not set(path_string(path).split("/")).isdisjoint(names)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def leaf_paths(params: PyTree) -> list[str]:
    """Returns the path of each leaf, keys joined by `/`, without nnx's `value`."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [path_string(path).removesuffix("/value") for path, _ in with_paths]


def are_named(params: PyTree, names: Sequence[str], argument: str) -> PyTree:
    """Returns for each leaf whether a name is its path or that of a layer above it.

    Args:
      params: any pytree.
      names: paths of leaves or layers, `"head/kernel"` or `"head"`.
      argument: what the names were given as, for the error.

    Raises:
      ValueError: a path that leads nowhere.
    """
    paths, treedef = leaf_paths(params), jax.tree.structure(params)

    def leads_to(name: str, path: str) -> bool:
        return path == name or path.startswith(f"{name}/")

    for name in names:
        # Without leaves they are the placeholder of `optax.tree.map_params`.
        if paths and not any(leads_to(name, path) for path in paths):
            raise ValueError(
                f"{argument} names {name!r}, which is not in the params. Use one of "
                f"{paths}, or a path above it."
            )
    return treedef.unflatten(
        [any(leads_to(name, path) for name in names) for path in paths]
    )

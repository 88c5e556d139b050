"""Resets of units in any tree: trees like the params, statistics and moments.

Shapes: N units of a group, S stack axes, K largest number of units reset in one update.
"""

from collections.abc import Mapping, Sequence
import functools
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
import optax

from cbp_jax._numbers import part_way
from cbp_jax._types import PyTree
from cbp_jax._units import (
    LeafPath,
    ResolvedGroup,
    UnitGroup,
    UnitMask,
    key_string,
    leaf_paths,
    path_string,
    resolve_units,
)
from cbp_jax._xla import replace_rows

_LINE_SEARCHES = (
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
)

_VARIANCE_WORDS = {"var", "variance", "std"}
# Haiku's moving averages have an `average`, as in `batch_norm/~/var_ema/average`, and
# `hidden`, the average before its bias correction.
_AVERAGE_NAMES = ("average", "hidden")

# Names of biases, gains and shifts, which have axes of size 1 in some libraries: the
# bias of a convolution in Equinox is [N, 1, 1], and the scale of a batch normalization
# in Haiku is [1, N].
_VECTOR_NAMES = ("b", "bias", "offset", "scale")

Masks = Sequence[tuple[ResolvedGroup, UnitMask]]
"""Resolved groups, each with the units to reset."""


def replaced_mask(replaced: jax.Array, num_units: int) -> jax.Array:
    """Turns indices (int32 [*S, K], N where unused) into a mask (bool [*S, N])."""
    indices = jnp.arange(num_units, dtype=replaced.dtype)
    stack = (None,) * (replaced.ndim - 1)
    return jnp.any(indices[*stack, :, None] == replaced[..., None, :], axis=-1)


def spread_masks(
    masks: Masks, shapes: Sequence[tuple[int, ...]]
) -> list[jax.Array | None]:
    """Turns masks of units into masks that broadcast to the leaves of a tree.

    Args:
      masks: the units that are reset.
      shapes: shapes of the leaves of the params.

    Returns:
      For each leaf of the flattened params, a mask of the entries to reset: the units'
      columns of `incoming`, rows of `outgoing`, biases, normalization parameters and
      learned slopes.
      None for a leaf without units.
    """
    spread: list[jax.Array | None] = [None] * len(shapes)
    for group, units in masks:
        for axes in group.all_axes:
            own = axes.spread_mask(units, shapes[axes.leaf])
            others = spread[axes.leaf]
            spread[axes.leaf] = own if others is None else own | others
    return spread


def reset_units(
    tree: PyTree,
    units: Sequence[UnitGroup],
    replaced: Mapping[str, jax.Array],
    fresh: PyTree | None = None,
) -> PyTree:
    """Resets the entries of replaced units in any tree shaped like the params.

    Use it for state that the transform does not own, such as an average of the params,
    a gradient accumulator, or eligibility traces. It resets the units' columns of
    `incoming`, rows of `outgoing`, biases, normalization parameters and learned slopes.

    Args:
      tree: pytree with the structure and shapes of the params.
      units: the groups passed to the transform.
      replaced: the state's `replaced`, a dict from each group's name to the indices of
        its replaced units, int32 [*S, K], N where unused. Other groups do not change,
        nor do units reset in part, which are not in `replaced`.
      fresh: tree with the new values of the entries; None sets them to 0.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: a group does not fit the tree; see `continual_backprop`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    values = [0] * len(leaves) if fresh is None else treedef.flatten_up_to(fresh)
    masks = [
        (group, UnitMask(replaced_mask(replaced[group.name], group.num_units)))
        for group in resolve_units(units, tree)
        if group.name in replaced
    ]
    return treedef.unflatten(
        [
            leaf
            if mask is None
            else jnp.where(mask, jnp.asarray(value, leaf.dtype), leaf)
            for mask, value, leaf in zip(
                spread_masks(masks, [jnp.shape(leaf) for leaf in leaves]),
                values,
                leaves,
                strict=True,
            )
        ]
    )


def reset_statistics(
    statistics: PyTree,
    units: Sequence[UnitGroup],
    replaced: Mapping[str, jax.Array],
    newborn: PyTree | None = None,
) -> PyTree:
    """Resets the normalization statistics of replaced units.

    Call it after each update if the network has such statistics::

      updates, state = tx.update(grads, state, params, features=features)
      statistics = cbp_jax.reset_statistics(statistics, units, state.replaced)

    Args:
      statistics: the network's collections other than the params, any pytree of arrays
        or `{}`. The leaves named by `UnitGroup.statistics` have the group's N units as
        their last axis.
      units: the groups passed to the transform.
      replaced: the state's `replaced`, a dict from each group's name to the indices of
        its replaced units, int32 [*S, K], N where unused. Other groups do not change,
        nor do units reset in part, which are not in `replaced`.
      newborn: tree like `statistics` with the new values, such as the one returned by
        the network's `init`. None sets variances to 1 and everything else to 0. A
        variance has `var`, `variance` or `std` as a word of the last key of its path:
        `norm/var`, `norm/running_var`, and in Haiku `norm/~/var_ema/average` and
        `hidden`. The state of Equinox has no names and needs `newborn`.

    Returns:
      A tree like `statistics`.

    Raises:
      ValueError: a path is not in the statistics, leaves of one group have different
        numbers of units, or the path of a leaf does not reveal its kind.
    """
    leaves, treedef = jax.tree.flatten(statistics)
    paths = leaf_paths(statistics)
    newborn_leaves = None if newborn is None else treedef.flatten_up_to(newborn)
    for group in units:
        if group.name not in replaced:
            continue
        for index in _find(group, paths, leaves):
            leaf = leaves[index]
            mask = replaced_mask(replaced[group.name], leaf.shape[-1])
            if newborn_leaves is None:
                value = _newborn_value(group, paths[index], paths)
            else:
                value = newborn_leaves[index]
            leaves[index] = jnp.where(mask, jnp.asarray(value, leaf.dtype), leaf)
    return treedef.unflatten(leaves)


def _newborn_value(
    group: UnitGroup, path: LeafPath, paths: Sequence[LeafPath]
) -> float:
    """Returns the initial value of a statistic, by its name."""
    name, above = path.last_key, path.layer.rpartition("/")[2]
    is_indexed = name.isdigit()
    if is_indexed or name in _AVERAGE_NAMES:
        name = above
    words = set(name.split("_"))
    if words & _VARIANCE_WORDS:
        return 1
    has_siblings = sum(other.layer == path.layer for other in paths) > 1
    if is_indexed and has_siblings and "mean" not in words:
        raise ValueError(
            f"Unit group {group.name!r}: the path {path.name!r} does not reveal "
            "whether the statistic is a mean, which starts at 0, or a variance, which "
            "starts at 1. Pass newborn, the statistics of a newly initialized network."
        )
    return 0


def _find(
    group: UnitGroup, among: Sequence[LeafPath], leaves: Sequence[jax.Array]
) -> list[int]:
    """Returns the indices of a group's leaves, checked."""
    paths = group.statistics or ()
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    found = []
    for path in paths:
        matches = [index for index, leaf in enumerate(among) if leaf.is_under(path)]
        if not matches:
            raise ValueError(
                f"Unit group {group.name!r}: statistics path {path!r} is not in the "
                f"statistics. The leaves are {[leaf.name for leaf in among]}. Pass all "
                "collections of the network except the params."
            )
        found += matches
    shapes = {among[index].name: jnp.shape(leaves[index]) for index in found}
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
    fractions: Mapping[str, jax.Array] = MappingProxyType({}),
) -> PyTree:
    """Sets the optimizer state of reset units to its initial values.

    This affects every array of the state that belongs to a param and has its shape. At
    the entries of replaced units it gets the value from
    `base_optimizer.init(new_params)`: 0 for momentum and Adam's moments, the initial
    accumulator for Adagrad, and the new weight for a second copy of the params, such as
    `z` in schedule-free SGD.

    L-BFGS approximates the Hessian with respect to all params, and a reset changes the
    loss. A state that contains L-BFGS is therefore reset completely when any unit is
    replaced.

    Args:
      base_optimizer: the transformation that the state belongs to.
      base_state: its state.
      new_params: the params after the reset.
      masks: which units of which groups are reset.
      keep: names of fields of the state that are left as they are.
      fractions: of groups whose units are reset in part, how far each unit goes toward
        its initial values, floating [*S, N] in [0, 1], 0 outside the mask. The entry of
        two units keeps what the one and then the other leaves of it.

    Returns:
      A state like `base_state`.

    Raises:
      ValueError: optax cannot find out which arrays of the state belong to params.
    """
    if starts_anew(base_state):
        is_reset = _any(masks)
        return jax.tree.map(
            lambda old, fresh: jnp.where(is_reset, fresh, old),
            base_state,
            base_optimizer.init(new_params),
        )
    owners = owners_of(base_optimizer, base_state, new_params, keep)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(new_params)]
    spread = spread_masks(masks, shapes)
    parts = _spread_fractions(masks, fractions)

    def reset(owner: int, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
        is_like_param = owner >= 0 and jnp.shape(leaf) == shapes[owner]
        mask = spread[owner] if is_like_param else None
        if mask is None:
            return leaf
        fresh = fresh.astype(leaf.dtype)
        if owner in parts:
            return part_way(leaf, fresh, parts[owner]).astype(leaf.dtype)
        rows = _rows(masks, owner)
        if rows is None or leaf.ndim < 2:
            return jnp.where(mask, fresh, leaf)
        return replace_rows(leaf, fresh, mask, rows)

    return jax.tree.map(reset, owners, base_state, base_optimizer.init(new_params))


def _spread_fractions(
    masks: Masks, fractions: Mapping[str, jax.Array]
) -> dict[int, jax.Array]:
    """Returns how far to reset the entries of the leaves of units reset in part.

    Args:
      masks: which units of which groups are reset.
      fractions: see `reset_moments`.
    """
    kept: dict[int, jax.Array] = {
        axes.leaf: jnp.ones(())
        for group, _ in masks
        if group.name in fractions
        for axes in group.all_axes
    }
    for group, units in masks:
        fraction = fractions.get(group.name, units.mask.astype(jnp.float32))
        for axes in group.all_axes:
            if axes.leaf in kept:
                left = 1 - axes.spread(fraction)
                kept[axes.leaf] = kept[axes.leaf].astype(left.dtype) * left
    return {leaf: 1 - share for leaf, share in kept.items()}


def _rows(masks: Masks, leaf: int) -> dict[int, jax.Array] | None:
    """Returns by axis of a leaf the one entry to reset along it, None for other resets.

    Args:
      masks: which units of which groups are reset.
      leaf: its index among the leaves of the params.
    """
    rows = {}
    for group, units in masks:
        for axes in group.all_axes:
            if axes.leaf != leaf:
                continue
            axis = axes.row_axis
            if units.alone is None or axis is None or axis in rows:
                return None
            rows[axis] = units.alone
    return rows


def forget_loss(base_state: PyTree, masks: Masks) -> PyTree:
    """Makes line searches forget the loss and gradient from before a reset.

    `optax.value_and_grad_from_state` would use them for the current params.

    Args:
      base_state: a base optimizer's state.
      masks: which units of which groups are reset.

    Returns:
      The state. If any unit was replaced, the loss of line searches is infinity, as
      before their first update.
    """

    def forget(node: PyTree) -> PyTree:
        if not isinstance(node, _LINE_SEARCHES):
            return node
        unknown = jnp.full_like(node.value, jnp.inf)
        return node._replace(value=jnp.where(_any(masks), unknown, node.value))

    return jax.tree.map(
        forget, base_state, is_leaf=lambda node: isinstance(node, _LINE_SEARCHES)
    )


def check_resettable(
    base_optimizer: optax.GradientTransformation,
    params: PyTree,
    keep: Sequence[str],
) -> None:
    """Raises ValueError at `init` if a state could not be reset later.

    The reason is that of `reset_moments`, or a name in `keep` that the state lacks.
    """
    base_state = jax.eval_shape(base_optimizer.init, params)
    if starts_anew(base_state):
        if keep:
            raise ValueError(
                f"keep_state is {tuple(keep)}, but a base optimizer with L-BFGS is "
                'reset completely. Remove keep_state, or pass moments="keep".'
            )
        return
    owners = owners_of(base_optimizer, base_state, params, ())
    of_params = [
        path_string(path).split("/")
        for path, owner in jax.tree_util.tree_leaves_with_path(owners)
        if owner >= 0
    ]
    unknown = sorted(set(keep) - {name for path in of_params for name in path})
    if unknown:
        paths = ["/".join(path) for path in of_params]
        raise ValueError(
            f"keep_state names {unknown}, which are not fields of the base optimizer's "
            f"state that belong to params. Use names in {paths}."
        )


def owners_of(
    base_optimizer: optax.GradientTransformation,
    base_state: PyTree,
    params: PyTree,
    keep: Sequence[str],
) -> PyTree:
    """Replaces each array of the state by the index of its param; -1 for no param."""
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
        if not _has(_LINE_SEARCHES, base_state):
            raise ValueError(
                "optax.tree.map_params cannot find out which arrays of the base "
                "optimizer's state belong to params, so the moments of replaced units "
                'cannot be reset. Pass moments="keep" to leave the state unchanged.'
            ) from error
        # The `init` of line searches fails in map_params, which passes no params.
        owners = _owners_by_structure(base_state, params, indices)
    param_paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]

    def keep_named(path: KeyPath, owner: int) -> int:
        # The params' own names do not count: a layer may be called `mu`.
        own = len(path) - len(param_paths[owner]) if owner >= 0 else len(path)
        fields = {key_string(key) for key in path[:own]}
        return owner if fields.isdisjoint(keep) else -1

    return jax.tree_util.tree_map_with_path(keep_named, owners)


def _owners_by_structure(base_state: PyTree, params: PyTree, indices: PyTree) -> PyTree:
    """Assumes that subtrees with the structure and shapes of the params are theirs."""
    treedef, shapes = jax.tree.structure(params), jax.tree.map(jnp.shape, params)

    def is_like_params(node: PyTree) -> bool:
        return jax.tree.structure(node) == treedef and (
            jax.tree.map(jnp.shape, node) == shapes
        )

    return jax.tree.map(
        lambda node: indices if is_like_params(node) else -1,
        base_state,
        is_leaf=is_like_params,
    )


def starts_anew(base_state: PyTree) -> bool:
    """Whether `reset_moments` resets a state completely, because it has L-BFGS."""
    return _has(optax.ScaleByLBFGSState, base_state)


def _has(kinds: type | tuple[type, ...], state: PyTree) -> bool:
    """Whether a state contains a node of any of these types."""

    def is_one(node: PyTree) -> bool:
        return isinstance(node, kinds)

    return any(map(is_one, jax.tree.leaves(state, is_leaf=is_one)))


def _any(masks: Masks) -> jax.Array:
    return functools.reduce(
        jnp.logical_or,
        [jnp.any(units.mask) for _, units in masks],
        jnp.zeros((), bool),
    )


def _is_masked(leaf: object) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def is_kernel(path: LeafPath, leaf: jax.Array) -> bool:
    """Whether a leaf is a kernel: it has two or more axes and is no bias or scale."""
    shape = jnp.shape(leaf)
    is_vector = sum(size > 1 for size in shape) < 2
    return len(shape) >= 2 and not (is_vector and path.last_key in _VECTOR_NAMES)


def are_kernels(params: PyTree) -> PyTree:
    """Returns, for each leaf, whether it is a kernel."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(is_kernel, leaf_paths(params), leaves))


def are_named(params: PyTree, names: Sequence[str], argument: str) -> PyTree:
    """Returns, for each leaf, whether a name is its path or that of a layer above it.

    Args:
      params: any pytree.
      names: paths of leaves or layers, such as `"head/kernel"` or `"head"`.
      argument: name of the argument with these names, for errors.

    Raises:
      ValueError: a path is not in the params.
    """
    paths, treedef = leaf_paths(params), jax.tree.structure(params)
    for name in names:
        # Params without leaves are the placeholder of `optax.tree.map_params`.
        if paths and not any(path.is_under(name) for path in paths):
            raise ValueError(
                f"{argument} names {name!r}, which is not in the params. Use one of "
                f"{[path.name for path in paths]}, or a path above it."
            )
    return treedef.unflatten(
        [any(path.is_under(name) for name in names) for path in paths]
    )

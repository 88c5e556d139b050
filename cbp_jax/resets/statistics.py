"""Newborn statistics for replaced units, in the state that a network keeps of them.

Shapes: N units of a group, K replaced at most in one step.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cbp_jax.resets.leaves import LeafPath, leaf_paths
from cbp_jax.resets.selection import replaced_mask
from cbp_jax.resets.units import PyTree, UnitGroup

_VARIANCE_WORDS = {"var", "variance", "std"}
# What Haiku's moving averages keep: `batch_norm/~/var_ema/average`, and before it is
# corrected for its first steps, `hidden`.
_AVERAGE_NAMES = ("average", "hidden")


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
        `init` made it. None sets variances to 1 and everything else to 0. Variances are
        known by `var`, `variance` or `std` in the last key of their path, between `_`:
        `norm/var`, `norm/running_var`; in Haiku `norm/~/var_ema/average` and `hidden`.
        The state of Equinox has no names and needs `newborn`.

    Returns:
      A tree like `statistics`.

    Raises:
      ValueError: a path that is not in the statistics, leaves of one group that do not
        have the same number of units, or a leaf whose path does not tell what it is.
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
    """Returns what a statistic begins with, by its name."""
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
            f"Unit group {group.name!r}: the path {path.name!r} does not tell whether "
            "the statistic is a mean, which is born as 0, or a variance, which is born "
            "as 1. Pass newborn, the statistics of a new network."
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
                f"statistics, whose leaves are {[leaf.name for leaf in among]}. "
                "Pass all collections of the network but the params."
            )
        found += matches
    shapes = {among[index].name: jnp.shape(leaves[index]) for index in found}
    if len({shape[-1:] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"Unit group {group.name!r}: its statistics must all have its units as "
            f"their last axis, got shapes {shapes}."
        )
    return found

"""Newborn statistics for replaced units, in the state that a network keeps of them.

Shapes: N units of a group, K replaced at most in one step.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cbp_jax.resets.leaves import path_string
from cbp_jax.resets.selection import replaced_mask
from cbp_jax.resets.units import PyTree, UnitGroup


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

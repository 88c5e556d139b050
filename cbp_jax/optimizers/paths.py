"""Leaves of the params, found by the path of the leaf or of a layer above it."""

from collections.abc import Sequence

import jax

from cbp_jax.resets.leaves import path_string
from cbp_jax.resets.units import PyTree


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

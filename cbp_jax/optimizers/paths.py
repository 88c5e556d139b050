"""Leaves of the params, found by the path of the leaf or of a layer above it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cbp_jax.resets.leaves import LeafPath, leaf_paths
from cbp_jax.resets.units import PyTree

# Names of biases, gains and shifts, of which some libraries keep axes of size 1: the
# bias of a convolution in Equinox is [N, 1, 1], the scale of a batch normalization in
# Haiku [1, N].
_VECTOR_NAMES = ("b", "bias", "offset", "scale")


def is_kernel(path: LeafPath, leaf: jax.Array) -> bool:
    """Whether a leaf is a kernel: has two or more axes, and is no bias or scale."""
    shape = jnp.shape(leaf)
    is_vector = sum(size > 1 for size in shape) < 2
    return len(shape) >= 2 and not (is_vector and path.last_key in _VECTOR_NAMES)


def are_kernels(params: PyTree) -> PyTree:
    """Returns for each leaf whether it is a kernel."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(is_kernel, leaf_paths(params), leaves))


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
    for name in names:
        # Without leaves they are the placeholder of `optax.tree.map_params`.
        if paths and not any(path.is_under(name) for path in paths):
            raise ValueError(
                f"{argument} names {name!r}, which is not in the params. Use one of "
                f"{[path.name for path in paths]}, or a path above it."
            )
    return treedef.unflatten(
        [any(path.is_under(name) for name in names) for path in paths]
    )

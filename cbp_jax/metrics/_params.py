"""Params as one vector, and two trees of params as a pair."""

from collections.abc import Callable

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from cbp_jax._numbers import float_dtype
from cbp_jax._types import PyTree


def as_vector(params: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Joins all floating-point leaves of a tree.

    Half precision is converted to float32, also in the trees that are made from a
    vector: a network that takes its precision from its params computes in float32.

    Args:
      params: any pytree of arrays.

    Returns:
      A vector, float32 or float64, and a function from such a vector to a tree like the
      params. All other leaves, such as integers, are those of the params.
    """
    leaves, treedef = jax.tree.flatten(params)
    is_float = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]
    floats = [x for x, each in zip(leaves, is_float, strict=True) if each]
    dtype = float_dtype(*floats)
    vector, unravel = ravel_pytree([jnp.asarray(x, dtype) for x in floats])

    def rebuild(vector: jax.Array) -> PyTree:
        new = iter(unravel(vector))
        return treedef.unflatten(
            [next(new) if each else x for x, each in zip(leaves, is_float, strict=True)]
        )

    return vector, rebuild


def check_alike(name: str, params: PyTree, other_name: str, other: PyTree) -> None:
    """Raises ValueError if two trees differ in structure or shapes."""
    found, wanted = jax.tree.structure(other), jax.tree.structure(params)
    if found != wanted:
        raise ValueError(
            f"{other_name} has the structure {found}, expected that of {name}, "
            f"{wanted}. Pass params of the same network."
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    others = [jnp.shape(leaf) for leaf in jax.tree.leaves(other)]
    if shapes != others:
        raise ValueError(
            f"{other_name} has leaves of shapes {others}, expected those of {name}, "
            f"{shapes}. Pass params of the same network."
        )

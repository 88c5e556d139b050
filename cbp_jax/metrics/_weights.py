"""Measures of the weights."""

import chex
import jax
import jax.numpy as jnp

from cbp_jax._numbers import float_dtype


def weight_magnitude(params: chex.ArrayTree) -> jax.Array:
    """Mean absolute weight over all weight matrices and kernels.

    The mean of `|w|` over all entries of all leaves with two or more axes; biases and
    other vectors are excluded (Dohare et al., 2024). Use `jax.vmap` over an axis of
    learners, which would otherwise turn biases into matrices.

    Args:
      params: any pytree of arrays, or one array, any real dtype.

    Returns:
      Scalar in the units of the weights, float32 or float64.

    Raises:
      ValueError: if no leaf has two or more axes.
    """
    leaves = jax.tree.leaves(params)
    weights = [leaf for leaf in leaves if jnp.ndim(leaf) >= 2]
    if not weights:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(
            f"The params have leaves of shapes {shapes}, none with two or more axes. "
            "Pass at least one kernel."
        )
    dtype = float_dtype(*weights)
    total = sum(jnp.sum(jnp.abs(jnp.asarray(w, dtype))) for w in weights)
    return jnp.asarray(total) / sum(jnp.size(weight) for weight in weights)

"""Measures of weights."""

import chex
import jax
import jax.numpy as jnp

from cbp_jax._numbers import float_dtype


def weight_magnitude(params: chex.ArrayTree) -> jax.Array:
    """Mean absolute weight over all weight matrices and kernels.

    The sum of `|w|` over every leaf of rank 2 or more, divided by the number of their
    entries; biases and other vectors are left out (Dohare et al., 2024). An axis of
    learners would make matrices of the biases: use `jax.vmap` over that axis.

    Args:
      params: any pytree of arrays, or one array, any real dtype.

    Returns:
      Scalar in the unit of the weights, float32 or float64.

    Raises:
      ValueError: if no leaf has rank 2 or more.
    """
    leaves = jax.tree.leaves(params)
    weights = [leaf for leaf in leaves if jnp.ndim(leaf) >= 2]
    if not weights:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"no leaf of rank 2 or more to average, only {shapes}")
    dtype = float_dtype(*weights)
    total = sum(jnp.sum(jnp.abs(jnp.asarray(w, dtype))) for w in weights)
    return jnp.asarray(total) / sum(jnp.size(weight) for weight in weights)

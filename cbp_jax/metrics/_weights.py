"""Measures of the weights. Shapes: N units."""

import chex
import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, float_dtype
from cbp_jax.metrics._params import check_alike
from cbp_jax.metrics._ranks import singular_values


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


def spectral_norm(kernel: jax.Array) -> jax.Array:
    """Largest singular value of a kernel.

    Args:
      kernel: [..., N], any real dtype. All axes but the last are one: a convolution is
        measured as the matrix `[window * fan_in, N]`.

    Returns:
      Scalar in the units of the weights, float32 or float64.

    Raises:
      ValueError: `kernel` has fewer than two axes.
    """
    return jnp.max(singular_values(_matrix(kernel)))


def condition_number(matrix: jax.Array) -> jax.Array:
    """Largest singular value divided by the smallest.

    A singular value below `max(s) * max(rows, columns) * eps` is rounding noise and
    counts as that much. A singular matrix therefore has the finite condition number
    `1 / (max(rows, columns) * eps)`, and so has a matrix of zeros.

    Args:
      matrix: [..., N], any real dtype: a kernel, as in `spectral_norm`, or a
        `tangent_kernel`.

    Returns:
      Scalar of at least 1, float32 or float64.

    Raises:
      ValueError: `matrix` has fewer than two axes.
    """
    matrix = _matrix(matrix)
    values = singular_values(matrix)
    largest = jnp.max(values)
    floor = max(matrix.shape) * jnp.finfo(values.dtype).eps
    scale = jnp.where(largest == 0, 1, largest)
    return 1 / jnp.maximum(jnp.min(values) / scale, floor)


def isometry_gap(kernel: jax.Array) -> jax.Array:
    """Distance of a kernel from one that keeps all lengths.

    The Frobenius norm of `W^T W - I`, or of `W W^T - I` if W has fewer rows than
    columns, so that an orthogonal kernel of either shape has 0. Source: Rosseau et al.,
    2026 (arXiv:2606.09762), who penalize its square.

    Args:
      kernel: [..., N], any real dtype, taken as a matrix as in `spectral_norm`.

    Returns:
      Scalar, float32 or float64.

    Raises:
      ValueError: `kernel` has fewer than two axes.
    """
    matrix = _matrix(kernel)
    wide = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    gram = jnp.matmul(wide, wide.T, precision=lax.Precision.HIGHEST)
    return jnp.linalg.norm(gram - jnp.eye(len(gram), dtype=gram.dtype))


def distance_from_initialization(
    params: chex.ArrayTree, initial_params: chex.ArrayTree
) -> jax.Array:
    """Euclidean distance between two sets of params, over all entries of all leaves.

    With the params before and after a task, it is the change over that task.

    Args:
      params: any pytree of arrays, or one array, any real dtype.
      initial_params: the same with other values.

    Returns:
      Scalar in the units of the weights, float32 or float64.

    Raises:
      ValueError: the two trees have different structures or shapes.
    """
    check_alike("params", params, "initial_params", initial_params)
    leaves, others = jax.tree.leaves(params), jax.tree.leaves(initial_params)
    dtype = float_dtype(*leaves, *others)
    changes = [
        jnp.ravel(jnp.asarray(new, dtype) - jnp.asarray(old, dtype))
        for new, old in zip(leaves, others, strict=True)
    ]
    return jnp.linalg.norm(jnp.concatenate(changes))


def _matrix(kernel: jax.Array) -> jax.Array:
    kernel = as_float(kernel)
    if kernel.ndim < 2:
        raise ValueError(
            f"The kernel has shape {kernel.shape}, expected two or more axes. Pass one "
            "kernel [..., fan_in, units]."
        )
    return kernel.reshape(-1, kernel.shape[-1])

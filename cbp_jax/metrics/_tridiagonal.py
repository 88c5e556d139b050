"""Eigenvalues of a symmetric matrix by loops alone. Shapes: N rows.

XLA's programs for large matrices on a TPU take minutes to compile, or make some ten
sweeps of N rotations, each over the whole matrix. This makes one sweep.
"""

import jax
from jax import lax
import jax.numpy as jnp


def eigenvalues_by_loops(matrix: jax.Array) -> jax.Array:
    """Eigenvalues of a symmetric matrix, ascending.

    Householder reflections make the matrix tridiagonal, and bisection by Sturm
    sequences finds all eigenvalues of that at once. Source: Golub and Van Loan, Matrix
    Computations, 4th edition, sections 8.3.1 and 8.4.1.

    Args:
      matrix: [N, N] symmetric, float32 or float64.

    Returns:
      [N], within a few roundings of the largest eigenvalue; all NaN if the matrix has a
      NaN.
    """
    # JAX's own bisection does not pass these checks, which a user may turn on.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        bands = _tridiagonal(matrix)
        found = jax.scipy.linalg.eigh_tridiagonal(*bands, eigvals_only=True)
        # For a matrix of zeros, bisection returns the smallest normal numbers.
        return jnp.where(jnp.all(matrix == 0), 0, found)


def _tridiagonal(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the diagonal [N] and off-diagonal [N - 1] of a similar matrix."""
    size = len(matrix)
    rows = jnp.arange(size)

    def reflect(
        index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        matrix, diagonal, off_diagonal = carry
        column = lax.dynamic_index_in_dim(matrix, index, axis=1, keepdims=False)
        below = jnp.where(rows > index, column, 0)
        is_next = rows == index + 1
        first = jnp.sum(jnp.where(is_next, column, 0))
        norm = jnp.sqrt(jnp.sum(below * below))
        # The sign keeps the difference below from losing digits.
        left = jnp.where(first > 0, -norm, norm)
        normal = jnp.where(is_next, first - left, below)
        square = jnp.sum(normal * normal)
        normal = normal * jnp.sqrt(2 / jnp.where(square > 0, square, 1))
        # Sums of products, since a TPU rounds the factors of a matrix product.
        image = jnp.sum(matrix * normal, axis=1)
        image = image - jnp.sum(image * normal) / 2 * normal
        matrix = matrix - normal[:, None] * image - image[:, None] * normal
        return (
            matrix,
            diagonal.at[index].set(column[index]),
            off_diagonal.at[index].set(left),
        )

    zeros = jnp.zeros(size, matrix.dtype)
    _, diagonal, off_diagonal = lax.fori_loop(0, size, reflect, (matrix, zeros, zeros))
    return diagonal, off_diagonal[:-1]

"""Singular values of a matrix by two methods, safe to `vmap` on a CPU.

Legend for shapes: M samples, N units, R = min(M, N) singular values.
"""

from collections.abc import Callable, Mapping
import functools
from types import MappingProxyType

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
import jax.numpy as jnp


def _gram_values(matrix: jax.Array) -> jax.Array:
    short = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    # Squares of very large or small entries would overflow or vanish in float32.
    largest = jnp.max(jnp.abs(short))
    scale = jnp.where(largest > 0, largest, 1)
    short = short / scale
    # Accelerators round the factors of a float32 product to fewer bits by default.
    gram = jnp.matmul(short, short.T, precision=lax.Precision.HIGHEST)
    eigenvalues = jnp.flip(_eigenvalues(gram))
    noise = jnp.finfo(gram.dtype).eps * eigenvalues[0]
    return scale * jnp.sqrt(jnp.where(eigenvalues < noise, 0, eigenvalues))


def _one_by_one_on_cpu(
    decompose: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
    """Keeps a CPU from decomposing several matrices in one call under `vmap`.

    JAX 0.10 splits such a call among the very threads that make it. When these all wait
    for parts that nobody is left to take, the program hangs: seen with 375 matrices on
    each of two CPU devices. JAX 0.11.2 no longer splits it. None of the settings of XLA
    that were tried is a way out: with one thread or without multi-threaded Eigen such
    calls hang as often; with 16 threads on two cores they do not, but other programs
    are slower.

    Derivatives are those of `decompose`; they still take a batch in one call.
    """
    # Inside a function of its own, arguments that are no arrays stay out of sight.
    on_cpu = sequential_vmap(lambda matrix: decompose(matrix))

    @jax.custom_jvp
    def values(matrix: jax.Array) -> jax.Array:
        return lax.platform_dependent(matrix, cpu=on_cpu, default=decompose)

    @values.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(decompose, primals, tangents)

    return values


_eigenvalues = _one_by_one_on_cpu(jnp.linalg.eigvalsh)

METHODS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "svd": _one_by_one_on_cpu(functools.partial(jnp.linalg.svd, compute_uv=False)),
        "gram": _gram_values,
    }
)
"""Maps features [M, N] to singular values [R], see `metrics.singular_values`."""

"""Ranks of a layer's features. Shapes: M samples, N units, R = min(M, N)."""

from collections.abc import Callable, Mapping
import functools
from types import MappingProxyType

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, check_range
from cbp_jax._xla import one_by_one_on_cpu
from cbp_jax.metrics._tridiagonal import eigenvalues_by_loops


def _gram_values(matrix: jax.Array) -> jax.Array:
    short = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    # Squares of very large or small entries would overflow or underflow in float32.
    largest = jnp.max(jnp.abs(short))
    scale = jnp.where(largest > 0, largest, 1)
    short = short / scale
    # By default, accelerators round the factors of a float32 product to fewer bits.
    gram = jnp.matmul(short, short.T, precision=lax.Precision.HIGHEST)
    eigenvalues = jnp.flip(symmetric_eigenvalues(gram))
    noise = jnp.finfo(gram.dtype).eps * eigenvalues[0]
    return scale * jnp.sqrt(jnp.where(eigenvalues < noise, 0, eigenvalues))


symmetric_eigenvalues = one_by_one_on_cpu(
    jnp.linalg.eigvalsh, on_tpu=eigenvalues_by_loops
)

METHODS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "svd": one_by_one_on_cpu(functools.partial(jnp.linalg.svd, compute_uv=False)),
        "gram": _gram_values,
    }
)
"""Functions from features [M, N] to singular values [R]; see `singular_values`."""


def singular_values(features: jax.Array, method: str = "svd") -> jax.Array:
    """Singular values of a feature matrix, largest first.

    `"svd"` is the reference. `"gram"` takes the square roots of the eigenvalues of the
    smaller Gram matrix. On one CPU core, it takes two thirds of the time for
    [2000, 500] and [2000, 2000]. Squaring halves the number of accurate digits. An
    eigenvalue below machine epsilon times the largest is rounding noise and becomes 0,
    so every singular value below `sqrt(eps)` (3.5e-4 in float32, 1.5e-8 in float64)
    times the largest is lost.

    We compared `"gram"` in float32 on a CPU with a float64 SVD on Gaussian, ReLU and
    low-rank matrices up to [2000, 2000]. Singular values above a tenth of the largest
    are off by at most 3e-7 of the largest, and all others by at most 6e-4 of it. The
    effective rank is at most 0.5 % too low, or up to 3 % too high for a matrix of rank
    5 or less. The stable rank is at most 0.7 % too low. The approximate rank was exact.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      method: `"svd"` or `"gram"`.

    Returns:
      [R] singular values in descending order, float32 or float64; all NaN if
      `features` contains a NaN.

    Raises:
      ValueError: if `method` is unknown or `features` is not a matrix.
    """
    if method not in METHODS:
        choices = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"Unknown method {method!r}. Use one of {choices}.")
    features = as_float(features)
    if features.ndim != 2:
        raise ValueError(
            f"features has shape {features.shape}, expected a matrix [samples, units]. "
            "Use features.reshape(-1, features.shape[-1]), or jax.vmap for a batch."
        )
    return METHODS[method](features)


def effective_rank(features: jax.Array, method: str = "svd") -> jax.Array:
    """Exponential of the entropy of the normalized singular values.

    `exp(-sum_k p_k log p_k)` with `p = s / sum(s)` and `0 log 0 = 0`; features are not
    centered. It is between 1 and the rank; 0 for a matrix of zeros. Source: Roy and
    Vetterli, The effective rank: a measure of effective dimensionality, 2007.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, in units, float32 or float64.

    Raises:
      ValueError: if `method` is unknown or `features` is not a matrix.
    """
    values = singular_values(features, method)
    total = jnp.sum(values)
    # `jax.scipy.special.entr` computes an infinity, which trips `jax_debug_infs`.
    share = values / _positive_or_one(total)
    product = share * jnp.log(_positive_or_one(share))
    # The select keeps XLA from fusing the product and the sum, which would change the
    # rounding.
    entropy = jnp.sum(-jnp.where(share == 0, 0, product))
    return jnp.where(total > 0, jnp.exp(entropy), total)


def stable_rank(
    features: jax.Array, threshold: jax.Array | float = 0.99, method: str = "svd"
) -> jax.Array:
    """Smallest number of singular values that exceed a fraction of their sum.

    The smallest k with `s_1 + ... + s_k > threshold * sum(s)`; 0 for a matrix of zeros.
    This is the stable rank of Dohare et al. (2024), not `sum(s**2) / max(s)**2`.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      threshold: fraction of the sum to exceed, in [0, 1).
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, a whole number of units as float32 or float64.

    Raises:
      ValueError: if `method` is unknown, `features` is not a matrix, or `threshold`
        is not in [0, 1).
    """
    return _leading_count(singular_values(features, method), threshold)


def approximate_rank(
    features: jax.Array, threshold: jax.Array | float = 0.99, method: str = "svd"
) -> jax.Array:
    """Smallest number of squared singular values that exceed a fraction of their sum.

    The smallest k with `s_1**2 + ... + s_k**2 > threshold * sum(s**2)`: the number of
    directions that explain this fraction of the (uncentered) variance; 0 for a matrix
    of zeros. Source: Yang et al., Harnessing structures for value-based planning, 2020.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      threshold: fraction of the sum of squares to exceed, in [0, 1).
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, a whole number of units as float32 or float64.

    Raises:
      ValueError: if `method` is unknown, `features` is not a matrix, or `threshold`
        is not in [0, 1).
    """
    values = singular_values(features, method)
    # Squares of very large or small values would overflow or underflow in float32.
    relative = values / _positive_or_one(jnp.max(values))
    return _leading_count(relative**2, threshold)


def srank(
    features: jax.Array, delta: jax.Array | float = 0.01, method: str = "svd"
) -> jax.Array:
    """Smallest number of singular values that reach a share of 1 - delta of their sum.

    The smallest k with `s_1 + ... + s_k >= (1 - delta) * sum(s)`; 0 for a matrix of
    zeros. `stable_rank` with threshold `1 - delta` differs only where this sum is
    reached exactly. Source: Kumar et al., Implicit under-parameterization inhibits
    data-efficient deep reinforcement learning, 2021.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      delta: share of the sum to leave out, in [0, 1).
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, a whole number of units as float32 or float64.

    Raises:
      ValueError: if `method` is unknown, `features` is not a matrix, or `delta` is not
        in [0, 1).
    """
    check_range("delta", delta, 0, 1, open_end=True)
    values = singular_values(features, method)
    total = jnp.sum(values)
    is_short = jnp.cumsum(values)[:-1] < (1 - delta) * total
    count = 1 + jnp.sum(is_short).astype(values.dtype)
    return jnp.where(total > 0, count, total)


def rankme(features: jax.Array, method: str = "svd") -> jax.Array:
    """RankMe, the effective rank with a small number added to each share.

    `exp(-sum_k p_k log p_k)` with `p = s / sum(s) + 1e-7`. It differs from
    `effective_rank` by rounding alone, unless all features are 0: then it is 1. Source:
    Garrido et al., RankMe: assessing the downstream performance of pretrained
    self-supervised representations by their rank, 2023.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, in units, float32 or float64.

    Raises:
      ValueError: if `method` is unknown or `features` is not a matrix.
    """
    values = singular_values(features, method)
    share = values / _positive_or_one(jnp.sum(values)) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def participation_ratio(features: jax.Array, method: str = "svd") -> jax.Array:
    """Squared sum of the squared singular values over the sum of their squares.

    `sum(s**2)**2 / sum(s**4)`: k for a matrix with k equal singular values; 0 for a
    matrix of zeros. Features are not centered: subtract their mean over the samples for
    the participation ratio of the covariance. Source: Gao et al., A theory of
    multineuronal dimensionality, dynamics and measurement, 2017.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, in units, float32 or float64.

    Raises:
      ValueError: if `method` is unknown or `features` is not a matrix.
    """
    values = singular_values(features, method)
    largest = jnp.max(values)
    # Powers of very large or small values would overflow or underflow in float32.
    squares = (values / _positive_or_one(largest)) ** 2
    ratio = jnp.sum(squares) ** 2 / _positive_or_one(jnp.sum(squares**2))
    return jnp.where(largest > 0, ratio, largest)


def numerical_rank(
    features: jax.Array, tolerance: jax.Array | float | None = None, method: str = "svd"
) -> jax.Array:
    """Number of singular values above a tolerance.

    Args:
      features: [M, N] outputs of N units on M samples, any real dtype.
      tolerance: in the units of the features; a singular value counts if it is larger.
        The default is `max(s) * max(M, N) * eps`, as in `numpy.linalg.matrix_rank`.
        With `"gram"` the same rule applies to the eigenvalues, which makes it
        `max(s) * sqrt(max(M, N) * eps)` and counts fewer small singular values.
      method: how to compute the singular values; see `singular_values`.

    Returns:
      Scalar, a whole number of units as float32 or float64.

    Raises:
      ValueError: if `method` is unknown or `features` is not a matrix.
    """
    values = singular_values(features, method)
    largest = jnp.max(values)
    if tolerance is None:
        relative = max(jnp.shape(features)) * jnp.finfo(values.dtype).eps
        tolerance = largest * (relative**0.5 if method == "gram" else relative)
    rank = jnp.sum(values > tolerance).astype(values.dtype)
    return jnp.where(jnp.isnan(largest), largest, rank)


def _leading_count(values: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Smallest k such that the first k values exceed a fraction of the sum, or NaN."""
    check_range("threshold", threshold, 0, 1, open_end=True)
    total = jnp.sum(values)
    is_short = jnp.cumsum(values)[:-1] <= threshold * total
    count = 1 + jnp.sum(is_short).astype(values.dtype)
    return jnp.where(total > 0, count, total)


def _positive_or_one(divisor: jax.Array) -> jax.Array:
    return jnp.where(divisor > 0, divisor, 1)

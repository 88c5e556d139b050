"""How many units of a layer are still in use. Shapes: N units."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from cbp_jax._numbers import as_float, check_range, is_traced


def dead_units(features: jax.Array) -> jax.Array:
    """Fraction of units whose output is exactly 0 on all samples (Dohare et al., 2024).

    Args:
      features: [..., N] outputs of N units, any real dtype; all other axes are samples.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis.
    """
    features = _flatten_samples(features)
    return _fraction_of_units(jnp.all(features == 0, axis=0), features)


def dormant_units(
    features: jax.Array, threshold: jax.Array | float = 0.01
) -> jax.Array:
    """Fraction of units that are active (above 0) on too few samples.

    Dohare et al. (2024) measure this on CIFAR-100. Each unit counts on its own, whereas
    ReDo's dormancy (`tau_dormant_units`) compares a unit with the mean of its layer.

    Args:
      features: [..., N] outputs of N units, any real dtype; all other axes are samples.
      threshold: fraction of samples; a unit that is active on fewer is dormant.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis, or `threshold` is not in [0, 1].
    """
    check_range("threshold", threshold, 0, 1)
    features = _flatten_samples(features)
    num_active = jnp.sum(features > 0, axis=0).astype(features.dtype)
    return _fraction_of_units(num_active < threshold * features.shape[0], features)


def tau_dormant_units(
    features: jax.Array, threshold: jax.Array | float = 0.1
) -> jax.Array:
    """Fraction of units that are weak compared with their layer (Sokar et al., 2023).

    A unit is dormant if its mean |h| over all samples is at most `threshold` times the
    layer's average of that mean (plus 1e-9, so that all units of a dead layer are).

    Args:
      features: [..., N] outputs of N units, any real dtype; all other axes are samples.
      threshold: tau, as a fraction of the layer's average.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis.
    """
    features = _flatten_samples(features)
    strength = jnp.mean(jnp.abs(features), axis=0)
    score = strength / (jnp.mean(strength) + 1e-9)
    return _fraction_of_units(score <= threshold, features)


def gradient_dormant_units(
    gradients: jax.Array, threshold: jax.Array | float = 0.01
) -> jax.Array:
    """Fraction of units that receive little gradient compared with their layer.

    A unit is dormant if its mean |g| is at most `threshold` times the layer's average
    of that mean (plus 1e-8, so that all units of a layer without a gradient are).
    Source: Liu et al., Measure gradients, not activations!, 2025 (arXiv:2505.24061),
    which takes the gradients of the activations. Public code also takes those of the
    incoming weights.

    Args:
      gradients: [..., N] gradients of the loss with respect to the activations of N
        units, or to their incoming weights; any real dtype.
      threshold: tau, as a fraction of the layer's average.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `gradients` has fewer than two axes.
    """
    gradients = _flatten_samples(gradients, "gradients")
    size = jnp.mean(jnp.abs(gradients), axis=0)
    score = size / (jnp.mean(size) + 1e-8)
    return _fraction_of_units(score <= threshold, gradients)


def always_on_units(
    features: jax.Array, threshold: jax.Array | float = 0.9
) -> jax.Array:
    """Fraction of units that are positive on nearly all samples.

    After a ReLU or a similar activation, which is positive where its input is, such a
    unit is linear in its input: it passes everything on and selects nothing. After a
    sigmoid, all units are positive, and the measure says nothing.

    Args:
      features: [..., N] outputs of N units, or their inputs before the activation, any
        real dtype; all other axes are samples.
      threshold: smallest fraction of samples on which such a unit is above 0.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis, or `threshold` is not in [0, 1].
    """
    check_range("threshold", threshold, 0, 1)
    features = _flatten_samples(features)
    share = jnp.mean(features > 0, axis=0, dtype=features.dtype)
    return _fraction_of_units(share >= threshold, features)


def duplicate_units(
    features: jax.Array, threshold: jax.Array | float = 0.95
) -> jax.Array:
    """Fraction of units whose outputs are nearly proportional to another unit's.

    A unit counts if the cosine between its outputs on all samples and those of at least
    one other unit is above `threshold`. Outputs are not centered, and a unit that is 0
    on all samples duplicates none. Duplicates receive nearly the same gradients and
    stay together. Source: Joudaki et al., Barriers for learning in an evolving world,
    2025 (arXiv:2510.00304).

    Args:
      features: [..., N] outputs of N units, any real dtype; all other axes are samples.
        The function computes an [N, N] matrix.
      threshold: cosine above which two units are duplicates, in [-1, 1].

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis, or `threshold` is not in [-1, 1].
    """
    check_range("threshold", threshold, -1, 1)
    features = _flatten_samples(features)
    # Squares of very large or small outputs would overflow or underflow in float32.
    largest = jnp.max(jnp.abs(features), axis=0, keepdims=True)
    scaled = features / jnp.where(largest > 0, largest, 1)
    norms = jnp.linalg.norm(scaled, axis=0, keepdims=True)
    unit = scaled / jnp.where(norms > 0, norms, 1)
    cosines = jnp.matmul(unit.T, unit, precision=lax.Precision.HIGHEST)
    is_live = (norms[0] > 0)[:, None] & (norms > 0)
    is_other = ~jnp.eye(features.shape[1], dtype=bool)
    is_duplicate = jnp.any((cosines > threshold) & is_live & is_other, axis=0)
    return _fraction_of_units(is_duplicate, features)


def saturated_units(
    features: jax.Array,
    low: jax.Array | float,
    high: jax.Array | float,
    margin: jax.Array | float = 0.05,
    threshold: jax.Array | float = 0.99,
) -> jax.Array:
    """Fraction of units that are near an asymptote on nearly all samples.

    This is the counterpart of a dead unit for a bounded activation: the slope is close
    to 0. With the same margin, a sigmoid unit (asymptotes 0 and 1) and a tanh unit (-1
    and 1) with half its input get the same verdict.

    Args:
      features: [..., N] outputs of N units, any real dtype; all other axes are samples.
      low: lower asymptote, in the units of the features.
      high: upper asymptote, in the units of the features.
      margin: largest distance from an asymptote that counts as near, as a fraction of
        `high - low`.
      threshold: smallest fraction of samples on which a saturated unit is near an
        asymptote, which need not be the same on each sample.

    Returns:
      Scalar fraction in [0, 1], float32 or float64.

    Raises:
      ValueError: `features` has no sample axis, `threshold` is not in [0, 1], or `low`
        is not below `high`.
    """
    check_range("threshold", threshold, 0, 1)
    is_given = not is_traced(low) and not is_traced(high)
    if is_given and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"low must be below high, got low={low} and high={high}.")
    features = _flatten_samples(features)
    distance = margin * (high - low)
    is_near = (features <= low + distance) | (features >= high - distance)
    num_near = jnp.sum(is_near, axis=0).astype(features.dtype)
    return _fraction_of_units(num_near >= threshold * features.shape[0], features)


def _flatten_samples(features: jax.Array, name: str = "features") -> jax.Array:
    features = as_float(features)
    if features.ndim < 2:
        raise ValueError(
            f"{name} has shape {features.shape}, expected [..., samples, units]. "
            "Pass the activations of a batch."
        )
    return features.reshape(-1, features.shape[-1])


def _fraction_of_units(is_counted: jax.Array, features: jax.Array) -> jax.Array:
    fraction = jnp.mean(is_counted, dtype=features.dtype)
    return jnp.where(jnp.any(jnp.isnan(features)), jnp.nan, fraction)

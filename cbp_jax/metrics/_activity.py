"""How many units of a layer are still in use. Shapes: N units."""

import jax
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


def _flatten_samples(features: jax.Array) -> jax.Array:
    features = as_float(features)
    if features.ndim < 2:
        raise ValueError(
            f"features has shape {features.shape}, expected [..., samples, units]. "
            "Pass the activations of a batch."
        )
    return features.reshape(-1, features.shape[-1])


def _fraction_of_units(is_counted: jax.Array, features: jax.Array) -> jax.Array:
    fraction = jnp.mean(is_counted, dtype=features.dtype)
    return jnp.where(jnp.any(jnp.isnan(features)), jnp.nan, fraction)

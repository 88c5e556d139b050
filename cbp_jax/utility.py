"""Utility measures: how much a hidden unit is worth to its network at this step.

A utility function maps the `cbp_jax.Measurements` of one group to one number per unit.
The transform keeps the running average of that number and replaces the mature units
where it is lowest, so only the order of the units inside a group matters. Any function
of this signature can be passed as `utility_fn`; those here are the measures of Dohare
et al. (2024) and of the authors' released code, whose names are given.

Magnitudes are means where the paper writes sums (the order is the same, and the means
do not depend on the width). A unit whose incoming weights are all zero transmits
nothing: the measures that divide by the incoming magnitude give it utility 0.

Shapes: B batch (times spatial positions that the consumer does not tell apart),
P positions (1, except for a convolution that is flattened into a dense layer), N units.
"""

from collections.abc import Callable
import warnings

import chex
import jax
import jax.numpy as jnp

from cbp_jax._numbers import average_weight
from cbp_jax._resets import Measurements

__all__ = [
    "UtilityFn",
    "activation_over_input",
    "adaptation",
    "average_weight",
    "contribution",
    "inverted",
    "mean_corrected_contribution",
    "overall",
    "random",
    "weight_magnitude",
]

UtilityFn = Callable[[Measurements], jax.Array]


def contribution(measurements: Measurements) -> jax.Array:
    """Returns |h| sum|w_out| per unit, [N]: Nature, Algorithm 1 (`contribution`)."""
    return _outgoing_signal(jnp.abs(measurements.activation), measurements)


def mean_corrected_contribution(measurements: Measurements) -> jax.Array:
    """Returns |h - mean h| sum|w_out| per unit, [N].

    What the next layer would miss if the unit's mean were kept as a bias. The
    preprint's mean-corrected contribution (`zero_contribution`).
    """
    return _outgoing_signal(_deviation(measurements), measurements)


def adaptation(measurements: Measurements) -> jax.Array:
    """Returns 1 / sum|w_in| per unit, [N]: how fast it can change (`adaptation`)."""
    return _reciprocal(measurements.incoming_magnitude)


def overall(measurements: Measurements) -> jax.Array:
    """Returns |h - mean h| sum|w_out| / sum|w_in| per unit, [N].

    The preprint's overall utility, which its experiments use
    (`adaptable_contribution`).
    """
    return mean_corrected_contribution(measurements) * adaptation(measurements)


def weight_magnitude(measurements: Measurements) -> jax.Array:
    """Returns sum|w_out| per unit, [N] (`weight`)."""
    return jnp.mean(measurements.outgoing_magnitude, axis=0)


def activation_over_input(measurements: Measurements) -> jax.Array:
    """Returns |h - mean h| / sum|w_in| per unit, [N] (`feature_by_input`)."""
    deviation = jnp.mean(_deviation(measurements), axis=(0, 1))
    return deviation * adaptation(measurements)


def random(measurements: Measurements) -> jax.Array:
    """Returns uniform numbers, [N], for which mature units are replaced at random."""
    shape, dtype = measurements.age.shape, measurements.incoming_magnitude.dtype
    return jax.random.uniform(measurements.key, shape, dtype)


# Averaged over time, draws of young units would spread wider than those of old ones and
# be the lowest more often. The mark tells the transform to rank by this step alone.
random.memoryless = True  # pyrefly: ignore[missing-attribute]


def inverted(utility_fn: UtilityFn) -> UtilityFn:
    """Returns the negative of a utility: the best mature units are replaced first.

    A control, the lower bound of what replacing units can do.
    """

    def negative(measurements: Measurements) -> jax.Array:
        return -utility_fn(measurements)

    negative.memoryless = getattr(  # pyrefly: ignore[missing-attribute]
        utility_fn, "memoryless", False
    )
    return negative


def _deviation(measurements: Measurements) -> jax.Array:
    if measurements.mean_activation is None:
        raise ValueError(
            "The measurements have no mean_activation, which only "
            "cbp_jax.continual_backprop keeps. Pass "
            "measurements._replace(mean_activation=...) with the units' running "
            "averages [N]."
        )
    chex.assert_rank(measurements.activation, 3)
    chex.assert_shape(measurements.mean_activation, measurements.activation.shape[2:])
    return jnp.abs(measurements.activation - measurements.mean_activation[None, None])


def _outgoing_signal(signal: jax.Array, measurements: Measurements) -> jax.Array:
    """Averages signal [B, P, N] times the outgoing weights at each position: [N]."""
    chex.assert_rank(signal, 3)
    chex.assert_shape(measurements.outgoing_magnitude, signal.shape[1:])
    per_position = jnp.mean(signal, axis=0) * measurements.outgoing_magnitude
    return jnp.mean(per_position, axis=0)


def _reciprocal(magnitude: jax.Array) -> jax.Array:
    is_zero = magnitude == 0
    return jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, magnitude))


def __getattr__(name: str) -> object:
    """Finds a name that has changed, with a warning."""
    if name == "UnitMeasurements":
        warnings.warn(
            "cbp_jax.utility.UnitMeasurements is now cbp_jax.Measurements.",
            DeprecationWarning,
            stacklevel=2,
        )
        return Measurements
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Utility measures: how useful a hidden unit is to its network at this step.

A utility function maps the `cbp_jax.Measurements` of one group to one number per unit.
The transform averages that number over time and replaces mature units with the lowest
average, so only the order of the units in a group matters. Pass any function of this
signature as `utility_fn`. The functions below are the measures of Dohare et al. (2024)
and of the authors' released code, whose names are in parentheses, and three that read
gradients.

Magnitudes are means where the paper has sums. The order is the same, and means do not
depend on the width. A unit whose incoming weights are all zero transmits nothing, so
measures that divide by the incoming magnitude give it utility 0.

A utility that reads a gradient names it in its attribute `needs`::

  def learning(measurements):
    return measurements.incoming_gradient * measurements.outgoing_magnitude.mean(axis=0)

  learning.needs = ("incoming_gradient",)

Shapes: B batch (times spatial positions that share their outgoing weights), P positions
(1, except for a convolution that is flattened into a dense layer), N units.
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
    "activation_gradient",
    "activation_over_input",
    "activation_times_gradient",
    "adaptation",
    "average_weight",
    "contribution",
    "gradient",
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

    This is what the next layer would lose if the unit were replaced by its mean, as a
    bias: the preprint's mean-corrected contribution (`zero_contribution`).
    """
    return _outgoing_signal(_deviation(measurements), measurements)


def adaptation(measurements: Measurements) -> jax.Array:
    """Returns 1 / sum|w_in| per unit, [N]: how fast it can adapt (`adaptation`)."""
    return _reciprocal(measurements.incoming_magnitude)


def overall(measurements: Measurements) -> jax.Array:
    """Returns |h - mean h| sum|w_out| / sum|w_in| per unit, [N].

    This is the preprint's overall utility, which its experiments use
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
    """Returns uniform random numbers, [N], so that random mature units are replaced."""
    shape, dtype = measurements.age.shape, measurements.incoming_magnitude.dtype
    return jax.random.uniform(measurements.key, shape, dtype)


# Averages over time would vary more for young units than for old ones, and would be the
# lowest more often. The mark makes the transform rank by the current step only.
random.memoryless = True  # pyrefly: ignore[missing-attribute]


def gradient(measurements: Measurements) -> jax.Array:
    r"""Returns the mean of :math:`|\partial L / \partial w_{in}|` per unit, [N].

    A unit with a small gradient hardly learns. This is the measure of Liu et al.,
    `Measure gradients, not activations! <https://arxiv.org/abs/2505.24061>`_, 2025, in
    their code. `Measurements` says which gradient it is.
    """
    return _required(measurements, "incoming_gradient")


def activation_gradient(measurements: Measurements) -> jax.Array:
    r"""Returns the mean of :math:`|\partial L / \partial h|` per unit, [N].

    This is the measure of Liu et al. (2025) in their paper. The update needs the
    keyword `feature_gradients`; see `cbp_jax.reset_by_rule`.
    """
    slopes = _required(measurements, "activation_gradient")
    return jnp.mean(jnp.abs(slopes), axis=(0, 1))


def activation_times_gradient(measurements: Measurements) -> jax.Array:
    r"""Returns the mean of :math:`|h \, \partial L / \partial h|` per unit, [N].

    To first order, this is the change of the loss if the unit were silent: the
    criterion of Molchanov et al., `Pruning convolutional neural networks for resource
    efficient inference <https://arxiv.org/abs/1611.06440>`_, 2017. They add up the
    positions of a convolution before they take absolute values, we afterwards. The
    update needs the keyword `feature_gradients`; see `cbp_jax.reset_by_rule`.
    """
    slopes = _required(measurements, "activation_gradient")
    chex.assert_equal_shape([slopes, measurements.activation])
    return jnp.mean(jnp.abs(measurements.activation * slopes), axis=(0, 1))


gradient.needs = ("incoming_gradient",)  # pyrefly: ignore[missing-attribute]
for _utility in (activation_gradient, activation_times_gradient):
    _utility.needs = ("activation_gradient",)  # pyrefly: ignore[missing-attribute]


def inverted(utility_fn: UtilityFn) -> UtilityFn:
    """Returns the negative of a utility, so that the best mature units are replaced.

    This is a control: a lower bound for replacing units.
    """

    def negative(measurements: Measurements) -> jax.Array:
        return -utility_fn(measurements)

    negative.memoryless = getattr(  # pyrefly: ignore[missing-attribute]
        utility_fn, "memoryless", False
    )
    negative.needs = getattr(  # pyrefly: ignore[missing-attribute]
        utility_fn, "needs", ()
    )
    return negative


def _required(measurements: Measurements, name: str) -> jax.Array:
    """Returns a gradient among the measurements; ValueError if it was not measured."""
    value = getattr(measurements, name)
    if value is None:
        raise ValueError(
            f"The measurements have no {name}, which is only measured on request. Add "
            f"{name!r} to `needs`, a field of a Rule and an attribute of a utility."
        )
    return value


def _deviation(measurements: Measurements) -> jax.Array:
    if measurements.mean_activation is None:
        raise ValueError(
            "The measurements have no mean_activation, which only "
            "cbp_jax.continual_backprop provides. Pass "
            "measurements._replace(mean_activation=...) with the running averages of "
            "the units, [N]."
        )
    chex.assert_rank(measurements.activation, 3)
    chex.assert_shape(measurements.mean_activation, measurements.activation.shape[2:])
    return jnp.abs(measurements.activation - measurements.mean_activation[None, None])


def _outgoing_signal(signal: jax.Array, measurements: Measurements) -> jax.Array:
    """Averages the signal [B, P, N] times the outgoing weights per position: [N]."""
    chex.assert_rank(signal, 3)
    chex.assert_shape(measurements.outgoing_magnitude, signal.shape[1:])
    per_position = jnp.mean(signal, axis=0) * measurements.outgoing_magnitude
    return jnp.mean(per_position, axis=0)


def _reciprocal(magnitude: jax.Array) -> jax.Array:
    is_zero = magnitude == 0
    return jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, magnitude))


def __getattr__(name: str) -> object:
    """Looks up a renamed class, and warns."""
    if name == "UnitMeasurements":
        warnings.warn(
            "cbp_jax.utility.UnitMeasurements is now cbp_jax.Measurements.",
            DeprecationWarning,
            stacklevel=2,
        )
        return Measurements
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Networks of linear threshold units, the targets of Slowly-Changing Regression.

Shapes: M bits of an input, the last of which is always 1; N units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LinearThresholdNetwork(NamedTuple):
    """One hidden layer of units that fire or do not, and a linear output."""

    weights: jax.Array  # [M, N], each +1 or -1.
    thresholds: jax.Array  # [N], a unit fires if its weighted sum is greater.
    output_weights: jax.Array  # [N], each +1 or -1.
    output_bias: jax.Array  # Scalar, +1 or -1.


def draw_network(
    key: jax.Array, num_bits: int, num_units: int, beta: float
) -> LinearThresholdNetwork:
    """Draws all weights and the output bias, +1 or -1 with equal probability.

    Args:
      key: typed key.
      num_bits: M.
      num_units: N.
      beta: see `unit_thresholds`.

    Returns:
      The network, float32.
    """
    # A single draw, since every draw takes half a second to compile.
    shape = num_bits + 1, num_units + 1
    # Like `jax.random.rademacher`, which draws other signs if JAX computes in 64 bits.
    is_positive = jax.random.bernoulli(key, jnp.float32(0.5), shape)
    signs = 2 * is_positive.astype(jnp.float32) - 1
    weights = signs[:-1, :-1]
    return LinearThresholdNetwork(
        weights=weights,
        thresholds=unit_thresholds(weights, beta),
        output_weights=signs[-1, :-1],
        output_bias=signs[-1, -1],
    )


def unit_thresholds(weights: jax.Array, beta: float) -> jax.Array:
    """Returns the thresholds `beta * M - S` of units with weights `[M, N]`: `[N]`.

    A unit fires if about a fraction `beta` of the M bits match its weights: 1 for a
    positive weight and 0 for a negative one. S is the number of negative weights as the
    released code computes it, `(M - 1 - w + b) / 2`, where w is the sum of the other
    weights and b is the weight of the constant bit. The actual number is
    `(M - w - b) / 2`, 1/2 less for b = 1 and 3/2 more for b = -1; errors are a third
    larger with it.
    """
    num_others = len(weights) - 1
    num_negative = (num_others - jnp.sum(weights[:-1], axis=0) + weights[-1]) / 2
    return beta * len(weights) - num_negative


def network_outputs(network: LinearThresholdNetwork, bits: jax.Array) -> jax.Array:
    """Maps inputs `[..., M]` of 0 and 1 to outputs `[...]`."""
    sums = bits @ network.weights
    fires = sums > network.thresholds[(None,) * (sums.ndim - 1)]
    return fires.astype(bits.dtype) @ network.output_weights + network.output_bias

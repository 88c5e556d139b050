"""Smooth-leaky activations, with a fixed or a random slope below 0."""

import jax
import jax.numpy as jnp


def smooth_leaky(
    inputs: jax.Array,
    slope: float | jax.Array = 0.1,
    sharpness: float | jax.Array = 5 / 3,
) -> jax.Array:
    r"""Leaky ReLU with a smooth transition: a x + (1 - a) x sigmoid(k x).

    The slope approaches a far below 0 and 1 far above. The paper writes
    :math:`k = c / p`, with c = 5 and p = 3.

    Args:
      inputs: array of any shape.
      slope: a, one number or an array that broadcasts to the inputs. May be traced.
      sharpness: k, per unit of the inputs. May be traced.

    Returns:
      An array like `inputs`.

    Source: Lillo and Cheney, Activation function design sustains plasticity in
    continual learning, arXiv:2509.22562, ICLR 2026, equation 1.
    """
    slope, sharpness = (
        jnp.asarray(number, inputs.dtype) for number in (slope, sharpness)
    )
    gate = jax.nn.sigmoid(sharpness * inputs)
    return slope * inputs + (1 - slope) * inputs * gate


def randomized_smooth_leaky(
    inputs: jax.Array,
    low: float | jax.Array = 1 / 8,
    high: float | jax.Array = 1 / 3,
    sharpness: float | jax.Array = 5 / 3,
    key: jax.Array | None = None,
) -> jax.Array:
    r"""`smooth_leaky` whose slope is drawn from U(low, high) for each input.

    In evaluation the slope is the mean, (low + high) / 2.

    Args:
      inputs: array of any shape.
      low: smallest slope. The defaults of both are those of randomized leaky ReLU. May
        be traced.
      high: largest slope. May be traced.
      sharpness: see `smooth_leaky`.
      key: PRNG key of the slopes, for training; None for evaluation. Under `vmap`,
        "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.

    Returns:
      An array like `inputs`.

    Source: Lillo and Cheney, see `smooth_leaky`; the range of slopes is from Xu et al.,
    Empirical evaluation of rectified activations in convolutional network,
    arXiv:1505.00853, 2015.
    """
    low, high = (jnp.asarray(number, inputs.dtype) for number in (low, high))
    share = 0.5 if key is None else jax.random.uniform(key, inputs.shape, inputs.dtype)
    return smooth_leaky(inputs, low + (high - low) * share, sharpness)

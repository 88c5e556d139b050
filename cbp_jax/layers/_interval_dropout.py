"""Activation by interval-wise dropout: a random mixture of two ReLUs."""

import jax
import jax.numpy as jnp


def aid(
    inputs: jax.Array, p: float | jax.Array = 0.99, key: jax.Array | None = None
) -> jax.Array:
    r"""Passes positive inputs with probability p, and negative ones with 1 - p.

    In training, with a mask m for each input,

    .. math::
      m \operatorname{relu}(x) - (1 - m) \operatorname{relu}(-x), \qquad
      m \sim \operatorname{Bernoulli}(p) .

    In evaluation it is the mean over the masks, :math:`p x` for :math:`x \geq 0` and
    :math:`(1 - p) x` below. With p = 1 it is ReLU, and with p = 1/2 dropout in a linear
    network. For symmetric inputs its mean square is that of ReLU, whatever p, so it
    needs the same initial weights.

    Args:
      inputs: array of any shape.
      p: in [0, 1]; published 0.99 (permuted MNIST) and 0.9 (random labels). May be
        traced.
      key: PRNG key of the masks, for training; None for evaluation. Under `vmap`, "rbg"
        keys make a lane depend on its neighbors; see `cbp_jax.continual_backprop`.

    Returns:
      An array like `inputs`.

    Source: Park et al., Activation by interval-wise dropout: a simple way to prevent
    neural networks from plasticity loss, arXiv:2502.01342, ICML 2025, Algorithm 2.
    """
    p = jnp.asarray(p, inputs.dtype)
    if key is None:
        return jnp.where(inputs >= 0, p * inputs, (1 - p) * inputs)
    mask = jax.random.bernoulli(key, p, inputs.shape)
    return jnp.where(mask == (inputs >= 0), inputs, 0)

"""Feature norm: keeps hidden activations small."""

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import PyTree
from cbp_jax.losses._features import arrays_of_layers


def feature_norm(features: PyTree) -> jax.Array:
    r"""Mean squared norm of each layer's activations.

    .. math:: \frac{1}{L} \sum_{l=1}^L \frac{1}{B} \sum_{b=1}^B \| h_l(x_b) \|_2^2

    Pass the activations of the last hidden layer alone to regularize only these.

    Args:
      features: pytree of activations `[B, ..., N]`, one array for each layer. Each
        example's norm is over all axes but the first.

    Returns:
      Scalar.

    Raises:
      ValueError: there are no features.

    References:
      Lyle et al., `Disentangling the causes of plasticity loss in neural networks
      <https://arxiv.org/abs/2402.18762>`_, 2024.
    """
    layers = arrays_of_layers("feature_norm", features)
    norms = [jnp.sum(jnp.square(as_float(layer))) / len(layer) for layer in layers]
    return jnp.mean(jnp.stack(norms))

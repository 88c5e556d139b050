"""Dropout whose rate may be traced."""

import jax
import jax.numpy as jnp


def dropout(key: jax.Array, inputs: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Sets entries to 0 with probability `rate` and divides the others by 1 - `rate`.

    Args:
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.
      inputs: array of any shape.
      rate: in [0, 1). May be traced, unlike that of `flax.linen.Dropout`.

    Returns:
      An array like `inputs`, with the same expected value.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.
    """
    keep = 1 - jnp.asarray(rate, inputs.dtype)
    is_kept = jax.random.bernoulli(key, keep, inputs.shape)
    return jnp.where(is_kept, inputs / keep, 0)

"""How much an update improves the loss on its own example."""

import jax
import jax.numpy as jnp

from cbp_jax._numbers import float_dtype


def update_plasticity(loss_before: jax.Array, loss_after: jax.Array) -> jax.Array:
    """Share of the loss on an example that one update on this example removes.

    `clip(1 - loss_after / max(loss_before, 1e-8), 0, 1)`: 1 if the update fits the
    example, 0 if it does not help. Both losses are of the same example and, where the
    network draws dropout masks, with the same masks. Average it over the examples of a
    task. Source: Elsayed and Mahmood, Addressing loss of plasticity and catastrophic
    forgetting in continual learning, 2024; the bound keeps a loss of 0 from dividing.

    Args:
      loss_before: losses before the update, nonnegative, any shape and real dtype.
      loss_after: losses after it, of the same shape.

    Returns:
      In [0, 1], of the shape of the losses, float32 or float64.
    """
    dtype = float_dtype(loss_before, loss_after)
    before, after = (jnp.asarray(each, dtype) for each in (loss_before, loss_after))
    return jnp.clip(1 - after / jnp.maximum(before, 1e-8), 0, 1)

"""Gradients of losses of params, added to updates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, widen
from cbp_jax._types import PyTree


def add_gradient(
    loss: Callable[[PyTree], jax.Array],
    strength: float | jax.Array,
    updates: PyTree,
    params: PyTree,
) -> PyTree:
    """Returns updates plus a strength times the gradient of a loss of the params.

    With a strength of 0 they are the updates bit for bit, even if the params diverged.

    Args:
      loss: maps params, in float32 or float64, to a scalar.
      strength: a number, which may be traced.
      updates: like the params.
      params: the params.
    """
    grads = jax.grad(loss)(jax.tree.map(as_float, params))

    def add(update: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        update = widen(update, param)
        factor = jnp.asarray(strength, grad.dtype)
        added = (update.astype(grad.dtype) + factor * grad).astype(update.dtype)
        # A diverged gradient times 0 would be NaN.
        return jnp.where(factor == 0, update, added)

    return jax.tree.map(add, updates, params, grads)

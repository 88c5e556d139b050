"""Losses of params as transformations that add their gradient to the updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import as_float, check_params, widen
from cbp_jax._types import PyTree


def penalty(
    name: str,
    strength: float | jax.Array,
    init: Callable[[PyTree], PyTree],
    loss: Callable[[PyTree, PyTree], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Adds a strength times the gradient of a loss of the params to the updates.

    With a strength of 0 the updates are the same bit for bit, even if the params
    diverged.

    Args:
      name: name of the transformation, for the error that params are missing.
      strength: a number, which may be traced.
      init: maps params to the state, which does not change.
      loss: maps params, in float32 or float64, and the state to a scalar.

    Returns:
      An optax transformation. Its update needs the params.

    Raises:
      ValueError: the update gets no params.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        del extra_args
        check_params(name, params)
        grads = jax.grad(loss)(jax.tree.map(as_float, params), state)
        return add_gradients(strength, updates, params, grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def add_gradients(
    strength: float | jax.Array, updates: PyTree, params: PyTree, grads: PyTree
) -> PyTree:
    """Adds a strength times gradients, in float32 or float64, to the updates."""

    def add(update: jax.Array, param: jax.Array, grad: jax.Array) -> jax.Array:
        update = widen(update, param)
        factor = jnp.asarray(strength, grad.dtype)
        added = (update.astype(grad.dtype) + factor * grad).astype(update.dtype)
        # A diverged gradient times 0 would be NaN.
        return jnp.where(factor == 0, update, added)

    return jax.tree.map(add, updates, params, grads)

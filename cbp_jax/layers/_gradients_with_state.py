"""Gradients of a network that also has state: running statistics of its layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cbp_jax._types import PyTree

FORWARD_STATS = "batch_stats"
"""Collection of statistics that the forward pass updates, as flax names it."""

BACKWARD_STATS = "backward_stats"
"""Collection of statistics whose gradient is what a training step adds to them."""


def value_and_grad_with_state(
    loss_fn: Callable[..., tuple[jax.Array, tuple[PyTree, PyTree]]],
) -> Callable[..., tuple[tuple[jax.Array, PyTree], PyTree, PyTree]]:
    """`jax.value_and_grad` for networks with or without state beside the params.

    The state is the dict of a flax network's collections other than the params, as its
    `init` makes it; `{}` for a network without any. Collections that the forward pass
    updates (batch normalization's running statistics) are taken from what it returns.
    To `BACKWARD_STATS` (online normalization's) the gradient with respect to it is
    added.

    Example::

      network = cbp_jax.networks.MLP((64, 64), 10, normalization="online")
      state, params = flax.core.pop(network.init(key, images), "params")

      def loss_fn(params, state, images, labels):
        (logits, features), state = network.apply(
            {"params": params, **state}, images, train=True, mutable=list(state))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (state, features)

      step = cbp_jax.layers.value_and_grad_with_state(loss_fn)
      (loss, features), grads, state = step(params, state, images, labels)

    Args:
      loss_fn: `(params, state, *args) -> (loss, (state, aux))` of a scalar loss. It may
        return the state in part: collections that it leaves out stay as they are.

    Returns:
      A function `(params, state, *args) -> ((loss, aux), grads, state)` of the
      gradients with respect to the params and the state after the step, of the given
      state's structure, shapes and dtypes. It raises ValueError if `loss_fn` returns a
      collection that the given state lacks.
    """

    def value_and_grad(
        params: PyTree, state: PyTree, *args: PyTree
    ) -> tuple[tuple[jax.Array, PyTree], PyTree, PyTree]:
        backward = {name: state[name] for name in (BACKWARD_STATS,) if name in state}

        def loss_of(params: PyTree, backward: PyTree) -> PyTree:
            return loss_fn(params, {**state, **backward}, *args)

        (loss, (forward, aux)), (grads, increments) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(params, backward)
        unknown = sorted(set(forward) - set(state))
        if unknown:
            raise ValueError(
                f"loss_fn returned the collections {unknown}, which are not in the "
                f"state {sorted(state)}; return those of the state only: network.apply("
                "..., mutable=list(state))."
            )
        forward = {name: _cast(forward[name], state[name]) for name in forward}
        backward = jax.tree.map(jnp.add, backward, _cast(increments, backward))
        return (loss, aux), grads, {**state, **forward, **backward}

    return value_and_grad


def _cast(tree: PyTree, like: PyTree) -> PyTree:
    """Converts leaves to the dtypes of another tree, so that a scan can carry it."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)

"""Gradients of networks with state, such as running statistics of their layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cbp_jax._types import PyTree

FORWARD_STATS = "batch_stats"
"""Collection of statistics that the forward pass updates; the name is flax's."""

BACKWARD_STATS = "backward_stats"
"""Collection of statistics to which a training step adds their gradient."""


def value_and_grad_with_state(
    loss_fn: Callable[..., tuple[jax.Array, tuple[PyTree, PyTree]]],
) -> Callable[..., tuple[tuple[jax.Array, PyTree], PyTree, PyTree]]:
    """`jax.value_and_grad` for networks with or without state in addition to params.

    The state is a dict of all flax collections except the params, as returned by
    `init`, or `{}` if there are none. Collections that the forward pass updates (the
    running statistics of batch normalization) are replaced by what it returns.
    `BACKWARD_STATS` (of online normalization) is incremented by the gradient with
    respect to it.

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
      loss_fn: `(params, state, *args) -> (loss, (state, aux))` with a scalar loss. It
        may return only part of the state: collections that it omits do not change.

    Returns:
      A function `(params, state, *args) -> ((loss, aux), grads, state)`. It returns the
      gradients with respect to the params, and the state after the step, which has the
      structure, shapes and dtypes of the given state. It raises ValueError if `loss_fn`
      returns a collection that the given state lacks.
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
                f"state {sorted(state)}. Return only collections of the state: "
                "network.apply(..., mutable=list(state))."
            )
        forward = {name: _cast(forward[name], state[name]) for name in forward}
        backward = jax.tree.map(jnp.add, backward, _cast(increments, backward))
        return (loss, aux), grads, {**state, **forward, **backward}

    return value_and_grad


def _cast(tree: PyTree, like: PyTree) -> PyTree:
    """Casts leaves to the dtypes of another tree, so that a scan can carry them."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)

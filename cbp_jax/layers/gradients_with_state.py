"""Gradients of a network that also has state: running statistics of its layers."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any

FORWARD_STATS = "batch_stats"
"""Collection of statistics that the forward pass updates, as flax names it."""

BACKWARD_STATS = "backward_stats"
"""Collection of statistics whose gradient is what a training step adds to them."""


def value_and_grad_with_state(
    loss_fn: Callable[..., tuple[jax.Array, tuple[PyTree, Any]]],
) -> Callable[..., tuple[tuple[jax.Array, Any], PyTree, PyTree]]:
    """`jax.value_and_grad` for networks with or without state beside the params.

    The state is the dict of a flax network's collections other than the params, as its
    `init` makes it. Collections that the forward pass updates (running statistics of
    batch normalization, say) are taken from what it returns. To `BACKWARD_STATS`
    (online normalization's) the gradient with respect to it is added. A network without
    state has the state `{}`.

    Example::

      state, params = flax.core.pop(network.init(key, inputs), "params")

      def loss_fn(params, state, inputs, targets):
        (outputs, features), state = network.apply(
            {"params": params, **state}, inputs, train=True, mutable=list(state))
        return loss(outputs, targets), (state, features)

      (value, features), grads, state = value_and_grad_with_state(loss_fn)(
          params, state, inputs, targets)

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
        params: PyTree, state: PyTree, *args: Any
    ) -> tuple[tuple[jax.Array, Any], PyTree, PyTree]:
        backward = {name: state[name] for name in state if name == BACKWARD_STATS}

        def loss_of(params: PyTree, backward: PyTree) -> Any:
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
        backward = jax.tree.map(
            lambda old, added: old + added.astype(old.dtype), backward, increments
        )
        return (loss, aux), grads, {**state, **forward, **backward}

    return value_and_grad

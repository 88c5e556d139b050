"""Aged against fresh params on a probe. Shapes: U updates, M examples."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import as_float
from cbp_jax._types import LossFn, PyTree
from cbp_jax.metrics._loss import scalar_loss
from cbp_jax.metrics._params import check_alike


class AgedAgainstFresh(NamedTuple):
    """Result of `aged_against_fresh`; losses and areas are float32 or float64."""

    aged_losses: jax.Array  # [U + 1], on the probe after 0 to U updates.
    fresh_losses: jax.Array  # [U + 1]
    aged_area: jax.Array  # Scalar, area under the curve, in loss times updates.
    fresh_area: jax.Array  # Scalar
    difference: jax.Array  # Scalar, aged minus fresh: above 0 if plasticity is lost.
    aged_updates: jax.Array  # int32 scalar, updates until the threshold; U + 1: never.
    fresh_updates: jax.Array  # int32 scalar


def aged_against_fresh(
    loss_fn: LossFn,
    params: PyTree,
    fresh_params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    *,
    num_updates: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    threshold: jax.Array | float | None = None,
) -> AgedAgainstFresh:
    """Measures plasticity directly: how fast params learn a probe, and fresh ones do.

    Copies of both sets of params are trained on the same probe, all of its examples in
    each update, each with a new optimizer and without any intervention. What differs is
    what the params have been through. The params that are passed do not change::

      def loss_fn(params, inputs, targets):
          return loss(apply(params, inputs), targets)

      fresh = jax.tree.map(lambda leaf: 0.5 * leaf, params)  # Initialize a network.
      result = cbp_jax.metrics.aged_against_fresh(
          loss_fn, params, fresh, inputs, labels, num_updates=3
      )

    Random labels make a probe that no earlier task helps with. The areas are by the
    trapezoidal rule. Source: Lyle et al., Understanding plasticity in neural networks,
    2023, who take the loss that an optimizer reaches from the params within a budget.

    Args:
      loss_fn: maps params, inputs and targets to a scalar loss.
      params: the params that have been trained, any pytree of floating-point arrays.
        They are trained in their own dtype.
      fresh_params: a new initialization of the same network, which is converted to the
        dtypes of `params`.
      inputs: the probe, [M, ...] or whatever `loss_fn` takes.
      targets: likewise.
      num_updates: U, at least 1.
      optimizer: an optax optimizer; None for `optax.adam(1e-3)`.
      threshold: loss to reach; None for half the first loss of the fresh params.

    Returns:
      An `AgedAgainstFresh`.

    Raises:
      ValueError: `num_updates` is below 1, the two trees have different structures or
        shapes, or the loss is not a scalar.
    """
    if num_updates < 1:
        raise ValueError(
            f"num_updates is {num_updates}, expected at least 1. Pass num_updates=100."
        )
    check_alike("params", params, "fresh_params", fresh_params)
    tx = optax.adam(1e-3) if optimizer is None else optimizer

    def loss_of(params: PyTree) -> jax.Array:
        return scalar_loss(loss_fn, params, inputs, targets)

    def update(
        carry: tuple[PyTree, optax.OptState], _: None
    ) -> tuple[tuple[PyTree, optax.OptState], jax.Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), as_float(loss)

    def train(params: PyTree) -> jax.Array:
        carry = params, tx.init(params)
        # The last update only makes the last loss known.
        return lax.scan(update, carry, length=num_updates + 1)[1]

    both = jax.tree.map(
        lambda leaf, fresh: jnp.stack(
            [leaf, jnp.asarray(fresh, jnp.result_type(leaf))]
        ),
        params,
        fresh_params,
    )
    losses = lax.map(train, both)  # One after the other, in one program.
    areas = jnp.trapezoid(losses, axis=1)
    wanted = losses[1, 0] / 2 if threshold is None else threshold
    is_there = losses <= wanted
    first = jnp.argmax(is_there, axis=1).astype(jnp.int32)
    updates = jnp.where(jnp.any(is_there, axis=1), first, num_updates + 1)
    return AgedAgainstFresh(
        aged_losses=losses[0],
        fresh_losses=losses[1],
        aged_area=areas[0],
        fresh_area=areas[1],
        difference=areas[0] - areas[1],
        aged_updates=updates[0],
        fresh_updates=updates[1],
    )

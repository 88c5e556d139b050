"""Optimization readiness. Shapes: M examples, B of them in a small batch."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import LossFn, PyTree
from cbp_jax.metrics._loss import scalar_loss
from cbp_jax.metrics._params import as_vector


class Readiness(NamedTuple):
    """Result of `readiness`; scalars, float32 or float64."""

    readiness: jax.Array  # Product of the two others.
    strength: jax.Array  # ||G||^2 / L
    reliability: jax.Array  # ||G||^2 / E ||g_B||^2, in [0, 1]


def readiness(
    loss_fn: LossFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    *,
    batch_size: int,
) -> Readiness:
    r"""Optimization readiness: how far one gradient step can get on a next task.

    .. math::
      \frac{\|G\|^2}{L} \cdot \frac{\|G\|^2}{E \|g_B\|^2}

    with L the loss and G its gradient on all M examples, and :math:`g_B` the gradients
    on small batches: the strength of the gradient times its reliability. The examples
    are split into M / B batches in their order, and G and L are means over these.
    Source: Wang et al., Predicting plasticity in deep continual learning, 2026
    (arXiv:2605.09044).

    Args:
      loss_fn: maps params, inputs and targets to a scalar: a nonnegative loss that is a
        mean over the examples.
      params: any pytree of arrays. Half precision is converted to float32; leaves that
        are not floating-point are constants.
      inputs: M examples of the next task, any pytree of arrays [M, ...].
      targets: any pytree of arrays [M, ...].
      batch_size: B, a divisor of M.

    Returns:
      A `Readiness`, of zeros where the gradient is 0.

    Raises:
      ValueError: `batch_size` does not divide the number of examples, or the loss is
        not a scalar.
    """
    examples = (inputs, targets)
    sizes = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if batch_size < 1 or len(sizes) != 1 or min(sizes) % batch_size:
        raise ValueError(
            f"batch_size is {batch_size} for inputs and targets of {sorted(sizes)} "
            "examples, expected a divisor of one number of examples. Pass as many "
            "inputs as targets, and a batch_size that divides them."
        )
    vector, rebuild = as_vector(params)

    def loss_of(vector: jax.Array, batch: tuple[PyTree, PyTree]) -> jax.Array:
        return as_float(scalar_loss(loss_fn, rebuild(vector), *batch))

    def add(
        sums: tuple[jax.Array, jax.Array, jax.Array], batch: tuple[PyTree, PyTree]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        loss, grad = jax.value_and_grad(loss_of)(vector, batch)
        new = (loss.astype(vector.dtype), grad, jnp.sum(grad * grad))
        return jax.tree.map(jnp.add, sums, new), None

    batches = jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (-1, batch_size, *leaf.shape[1:])), examples
    )
    zero = jnp.zeros((), vector.dtype)
    sums, _ = lax.scan(add, (zero, jnp.zeros_like(vector), zero), batches)
    number = min(sizes) // batch_size
    loss, gradient, square = (each / number for each in sums)
    of_mean = jnp.sum(gradient * gradient)
    strength = of_mean / jnp.where(loss == 0, 1, loss)
    reliability = of_mean / jnp.where(square == 0, 1, square)
    return Readiness(strength * reliability, strength, reliability)

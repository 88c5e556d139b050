"""How much outputs change. Shapes: B held-out inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float


class Churn(NamedTuple):
    """Result of `churn`; scalars, float32 or float64."""

    distance: jax.Array  # Mean Euclidean distance of the outputs, in their units.
    decisions: jax.Array  # Fraction of inputs whose largest output is another one.


def churn(outputs: jax.Array, new_outputs: jax.Array) -> Churn:
    """Change of a network's outputs on inputs that it was not trained on.

    Compute the outputs on held-out inputs before and after some updates::

      outputs = apply(params, inputs)
      new_params = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, params, grads)
      result = cbp_jax.metrics.churn(outputs, apply(new_params, inputs))

    Sources: Schaul et al., The phenomenon of policy churn, 2022, for the decisions;
    Tang and Berseth, Improving deep reinforcement learning by reducing the chain effect
    of value and policy churn, 2024, for the distance.

    Args:
      outputs: [B, ...] such as logits or values, any real dtype.
      new_outputs: the same after the updates.

    Returns:
      A `Churn`; its `decisions` are 0 for a single output.

    Raises:
      ValueError: the shapes differ, or there is no batch axis.
    """
    if jnp.shape(outputs) != jnp.shape(new_outputs) or jnp.ndim(outputs) < 1:
        raise ValueError(
            f"outputs has shape {jnp.shape(outputs)} and new_outputs "
            f"{jnp.shape(new_outputs)}, expected one shape [batch, ...]. Pass the "
            "outputs of both sets of params on the same inputs."
        )
    old, new = (as_float(each) for each in (outputs, new_outputs))
    old, new = (each.reshape(each.shape[0], -1) for each in (old, new))
    is_other = jnp.argmax(old, axis=1) != jnp.argmax(new, axis=1)
    return Churn(
        jnp.mean(jnp.linalg.norm(new - old, axis=1)),
        jnp.mean(is_other, dtype=new.dtype),
    )

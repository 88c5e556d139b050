"""Distances of each param from its own initial value: L1 and Huber."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import as_float
from cbp_jax._types import PyTree
from cbp_jax.losses._sums import add_up


def l1_to_init(params: PyTree, initial_params: PyTree) -> jax.Array:
    r"""L1 distance from the initial params, :math:`\sum |\theta - \theta_0|`.

    The gradient at a param that equals its initial value is 0.

    Args:
      params: any pytree of arrays.
      initial_params: like the params; no gradient flows into them.

    Returns:
      Scalar. The published strengths are 1e-2 to 1e-5.

    References:
      Kumar, Marklund and Van Roy, `Maintaining plasticity in continual learning via
      regenerative regularization <https://arxiv.org/abs/2308.11958>`_, 2023.
    """

    def magnitude(distance: jax.Array) -> jax.Array:
        # In JAX the derivative of the absolute value at 0 is 1.
        return distance * jax.lax.stop_gradient(jnp.sign(distance))

    return _add_up(magnitude, params, initial_params)


def huber_to_init(
    params: PyTree, initial_params: PyTree, *, delta: float | jax.Array = 1.0
) -> jax.Array:
    r"""Huber distance from the initial params.

    The sum over all params of :math:`\tfrac{1}{2} d^2` where :math:`d = |\theta -
    \theta_0|` is at most :math:`\delta`, and of :math:`\delta (d - \tfrac{1}{2}
    \delta)` elsewhere.

    Args:
      params: any pytree of arrays.
      initial_params: like the params; no gradient flows into them.
      delta: :math:`\delta`, published 1.

    Returns:
      Scalar.

    References:
      Kumar, Marklund and Van Roy, `Maintaining plasticity in continual learning via
      regenerative regularization <https://arxiv.org/abs/2308.11958>`_, 2023; the
      authors' code has it, the paper does not.
    """
    return _add_up(
        lambda distance: optax.losses.huber_loss(distance, delta=delta),
        params,
        initial_params,
    )


def _add_up(
    penalty: Callable[[jax.Array], jax.Array], params: PyTree, initial_params: PyTree
) -> jax.Array:
    def term(param: jax.Array, initial: jax.Array) -> jax.Array:
        initial = jax.lax.stop_gradient(as_float(initial))
        return jnp.sum(penalty(as_float(param) - initial))

    return add_up(jax.tree.leaves(jax.tree.map(term, params, initial_params)))

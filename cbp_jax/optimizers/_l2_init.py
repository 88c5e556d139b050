"""L2 init (regenerative regularization): L2 toward the initial params."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_params, widen
from cbp_jax._types import PyTree


class L2InitState(NamedTuple):
    """State of `l2_init`."""

    initial_params: PyTree  # theta_0, like the params.


def l2_init(
    strength: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds :math:`\lambda (\theta - \theta_0)` to the gradient of every param.

    :math:`\theta_0` are the params that `init` was called with. Put it before the
    optimizer::

      tx = optax.chain(cbp_jax.optimizers.l2_init(1e-3), optax.sgd(1e-2))

    This is the gradient of :math:`\frac{\lambda}{2} \|\theta - \theta_0\|^2`, the
    penalty of the authors' code. The paper writes it without the factor 1/2: its
    :math:`\lambda` is half of the one here.

    The authors' code excludes the params of layer normalizations, although the paper
    does not say so; use `optax.masked` to do the same. In the base optimizer of a
    transformation that resets units, the :math:`\theta_0` of a reset unit becomes its
    new weights, as all its optimizer state is reset. Pass
    `keep_state=("initial_params",)` there to keep the old ones.

    Args:
      strength: :math:`\lambda`, published 1e-2 to 1e-5. 0 does not change the updates,
        bit for bit.

    Returns:
      An optax transformation with state `L2InitState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params.

    References:
      Kumar, Marklund and Van Roy, `Maintaining plasticity in continual learning via
      regenerative regularization <https://arxiv.org/abs/2308.11958>`_, 2023.
    """

    def init(params: PyTree) -> L2InitState:
        # Copy, because the params themselves may be donated to the next update.
        return L2InitState(jax.tree.map(jnp.copy, params))

    def update(
        updates: PyTree,
        state: L2InitState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, L2InitState]:
        del extra_args
        check_params("l2_init", params)

        def add_pull(
            update: jax.Array, param: jax.Array, initial: jax.Array
        ) -> jax.Array:
            update = widen(update, param)
            dtype = at_least_float32(update.dtype)
            distance = param.astype(dtype) - initial.astype(dtype)
            factor = jnp.asarray(strength, dtype)
            pulled = (update.astype(dtype) + factor * distance).astype(update.dtype)
            # A diverged param times 0 would be NaN.
            return jnp.where(factor == 0, update, pulled)

        return jax.tree.map(add_pull, updates, params, state.initial_params), state

    return optax.GradientTransformationExtraArgs(init, update)

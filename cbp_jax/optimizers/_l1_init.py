"""L1 init: L1 toward the initial params."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax import losses
from cbp_jax._types import PyTree
from cbp_jax.optimizers._penalties import penalty


class L1InitState(NamedTuple):
    """State of `l1_init`."""

    initial_params: PyTree  # theta_0, like the params.


def l1_init(
    strength: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds :math:`\lambda \operatorname{sign}(\theta - \theta_0)` to the gradient.

    :math:`\theta_0` are the params that `init` was called with. Put it before the
    optimizer::

      tx = optax.chain(cbp_jax.optimizers.l1_init(1e-3), optax.sgd(1e-2))

    This is the gradient of `cbp_jax.losses.l1_to_init`. What `l2_init` says of
    normalizations and of reset units holds here as well.

    Args:
      strength: :math:`\lambda`, published 1e-2 to 1e-5. 0 does not change the updates,
        bit for bit.

    Returns:
      An optax transformation with state `L1InitState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params.

    References:
      Kumar, Marklund and Van Roy, `Maintaining plasticity in continual learning via
      regenerative regularization <https://arxiv.org/abs/2308.11958>`_, 2023.
    """

    def init(params: PyTree) -> L1InitState:
        # Copy, because the params themselves may be donated to the next update.
        return L1InitState(jax.tree.map(jnp.copy, params))

    def loss(params: PyTree, state: L1InitState) -> jax.Array:
        return losses.l1_to_init(params, state.initial_params)

    return penalty("l1_init", strength, init, loss)

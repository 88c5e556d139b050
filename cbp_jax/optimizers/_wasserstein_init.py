"""Wasserstein init: each tensor's entries keep their initial distribution."""

from typing import NamedTuple

import jax
import optax

from cbp_jax._types import PyTree
from cbp_jax.losses._sums import add_up
from cbp_jax.losses._wasserstein_to_init import distance_from_sorted, sorted_entries
from cbp_jax.optimizers._penalties import penalty


class WassersteinInitState(NamedTuple):
    """State of `wasserstein_init`."""

    # Like the params: the entries of theta_0 in ascending order, [1, 1, size] in at
    # least float32. No param has this shape, so that resets of units, to which single
    # entries do not belong, leave it alone.
    sorted_entries: PyTree


def wasserstein_init(
    strength: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of `cbp_jax.losses.wasserstein_to_init` to the gradient.

    With :math:`r(i)` the rank of entry i among the n entries of its tensor,

    .. math::
      g_i \leftarrow g_i + \frac{2 \lambda}{n}
      \big( \theta_i - \theta_{0, (r(i))} \big),

    where :math:`\theta_{0, (r)}` is the r-th smallest entry of the tensor that `init`
    was called with. Put it before the optimizer::

      tx = optax.chain(cbp_jax.optimizers.wasserstein_init(1e-3), optax.sgd(1e-2))

    Every update sorts every tensor, which is slow if they are large. The initial
    distribution stays when units are reset.

    Args:
      strength: :math:`\lambda`, published 1e-2 to 1e-5. 0 does not change the updates,
        bit for bit.

    Returns:
      An optax transformation with state `WassersteinInitState`. Its update needs the
      params.

    Raises:
      ValueError: the update gets no params.

    References:
      Lewandowski et al., `Directions of curvature as an explanation for loss of
      plasticity <https://arxiv.org/abs/2312.00246>`_, 2023.
    """

    def init(params: PyTree) -> WassersteinInitState:
        return WassersteinInitState(
            jax.tree.map(lambda param: sorted_entries(param)[None, None], params)
        )

    def loss(params: PyTree, state: WassersteinInitState) -> jax.Array:
        distances = jax.tree.map(
            lambda param, initial: distance_from_sorted(param, initial[0, 0]),
            params,
            state.sorted_entries,
        )
        return add_up(jax.tree.leaves(distances))

    return penalty("wasserstein_init", strength, init, loss)

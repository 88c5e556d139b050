"""Wasserstein init: each tensor's entries keep their initial distribution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import as_float, check_params
from cbp_jax._types import PyTree
from cbp_jax._xla import cond_any_lane
from cbp_jax.losses._wasserstein_to_init import sorted_entries
from cbp_jax.optimizers._events import EventState, Schedule, new_events, next_update
from cbp_jax.optimizers._penalties import add_gradients


class WassersteinInitState(NamedTuple):
    """State of `wasserstein_init`.

    Both trees are like the params, in at least float32, but their leaves have other
    shapes: single entries do not belong to a unit, so resets of units leave them alone.
    """

    events: EventState
    sorted_entries: PyTree  # [1, 1, size]: the entries of theta_0 in ascending order.
    targets: PyTree  # [1, 1, size]: the entry of theta_0 that pulls each entry.


def wasserstein_init(
    strength: float | jax.Array, schedule: Schedule | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of `cbp_jax.losses.wasserstein_to_init` to the gradient.

    With :math:`r(i)` the rank of entry i among the n entries of its tensor,

    .. math::
      g_i \leftarrow g_i + \frac{2 \lambda}{n}
      \big( \theta_i - \theta_{0, (r(i))} \big),

    where :math:`\theta_{0, (r)}` is the r-th smallest entry of the tensor that `init`
    was called with. Put it before the optimizer::

      tx = optax.chain(cbp_jax.optimizers.wasserstein_init(1e-3), optax.sgd(1e-2))

    Sorting every tensor at every update is slow. Ranks change slowly, so they can be
    kept for a while::

      wasserstein_init(1e-3, cbp_jax.optimizers.every(100))

    The initial distribution stays when units are reset.

    Args:
      strength: :math:`\lambda`, published 1e-2 to 1e-5. 0 does not change the updates,
        bit for bit.
      schedule: which updates compute the ranks anew; others use the ranks of the last
        such update, or of `init`. None for all of them, as published.

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
            new_events(),
            jax.tree.map(lambda param: sorted_entries(param)[None, None], params),
            # Copy, because the params themselves may be donated to the next update.
            jax.tree.map(
                lambda param: jnp.copy(as_float(param)).reshape(1, 1, -1), params
            ),
        )

    def update(
        updates: PyTree,
        state: WassersteinInitState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, WassersteinInitState]:
        del extra_args
        check_params("wasserstein_init", params)
        is_due, count = next_update(schedule or (lambda count: True), state.events)
        targets = cond_any_lane(
            is_due,
            _match,
            lambda operand: operand[-1],
            (is_due, params, state.sorted_entries, state.targets),
        )

        def gradient(param: jax.Array, target: jax.Array) -> jax.Array:
            distance = as_float(param) - target.reshape(param.shape)
            return 2 / param.size * distance

        grads = jax.tree.map(gradient, params, targets)
        updates = add_gradients(strength, updates, params, grads)
        events = EventState(count, None)
        return updates, WassersteinInitState(events, state.sorted_entries, targets)

    return optax.GradientTransformationExtraArgs(init, update)


def _match(operand: PyTree) -> PyTree:
    """Returns the targets of all entries by their ranks, if that is due."""
    is_due, params, sorted_initial, targets = operand

    def match(param: jax.Array, initial: jax.Array, target: jax.Array) -> jax.Array:
        order = jnp.argsort(as_float(param).ravel())
        matched = jnp.zeros_like(target).at[..., order].set(initial)
        return jnp.where(is_due, matched, target)

    return jax.tree.map(match, params, sorted_initial, targets)

"""Hare and tortoise: at events, fast params are reset to their slow average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_params, check_range, is_known
from cbp_jax._types import PyTree
from cbp_jax.optimizers._events import (
    EventState,
    Schedule,
    change_params,
    new_events,
    next_params,
    next_update,
)


class HareAndTortoiseState(NamedTuple):
    """State of `hare_and_tortoise`."""

    events: EventState  # Its key is None.
    slow: PyTree  # The tortoise, like the params, in at least float32.


def hare_and_tortoise(
    schedule: Schedule, *, decay: float | jax.Array = 0.999
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a slow average of the params and resets them to it at events.

    After each update the tortoise follows the hare, the params being trained,

    .. math::
      \theta_\text{slow} \leftarrow
        \mu \theta_\text{slow} + (1 - \mu) \theta_\text{fast},

    and after each update of the schedule, :math:`\theta_\text{fast} \leftarrow
    \theta_\text{slow}`. Both start from the same params. Put it last in a chain::

      tx = optax.chain(optax.sgd(1e-2), hare_and_tortoise(every(1000)))

    Evaluate the network with the tortoise, `slow_params(state)`. Running statistics of
    a normalization are not params: average and reset them yourself. Events do not
    change the optimizer's state.

    In the base optimizer of a transformation that resets units, the slow weights of a
    reset unit become its new weights, as all its optimizer state is reset. Pass
    `keep_state=("slow",)` there to keep the old ones.

    Args:
      schedule: when the hare is reset; see `cbp_jax.optimizers.every`. Without events
        the updates do not change, bit for bit.
      decay: :math:`\mu` in [0, 1], published 0.999. With 0 the tortoise equals the hare
        and the updates do not change, bit for bit.

    Returns:
      An optax transformation with state `HareAndTortoiseState`. Its update needs the
      params.

    Raises:
      ValueError: `decay` is out of its range, or the update gets no params.

    References:
      Lee et al., `Slow and steady wins the race: maintaining plasticity with hare and
      tortoise networks <https://arxiv.org/abs/2406.02596>`_, 2024.
    """
    check_range("decay", decay, 0, 1)

    def init(params: PyTree) -> HareAndTortoiseState:
        # Copy, because the params themselves may be donated to the next update.
        slow = jax.tree.map(
            lambda param: jnp.array(param, at_least_float32(param.dtype)), params
        )
        return HareAndTortoiseState(new_events(), slow)

    def update(
        updates: PyTree,
        state: HareAndTortoiseState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, HareAndTortoiseState]:
        del extra_args
        check_params("hare_and_tortoise", params)

        def follow(slow: jax.Array, fast: jax.Array) -> jax.Array:
            mu = jnp.asarray(decay, slow.dtype)
            return mu * slow + (1 - mu) * fast.astype(slow.dtype)

        slow = jax.tree.map(follow, state.slow, next_params(params, updates))
        is_due, count = next_update(schedule, state.events)
        # With a known decay of 0 there is nothing to reset, and even a branch that does
        # nothing changes how XLA rounds.
        if not is_known(decay, lambda decay: decay == 0):
            updates, _ = change_params(
                is_due, lambda params, key: slow, None, updates, params
            )
        return updates, HareAndTortoiseState(EventState(count, None), slow)

    return optax.GradientTransformationExtraArgs(init, update)


def slow_params(state: PyTree) -> PyTree:
    """Returns the slow params, for evaluation, from an optimizer state.

    Args:
      state: state of `hare_and_tortoise` or of a transformation that contains it.

    Returns:
      A tree like the params, in at least float32.

    Raises:
      ValueError: the state does not contain exactly one `HareAndTortoiseState`.
    """

    def is_own(node: PyTree) -> bool:
        return isinstance(node, HareAndTortoiseState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_own) if is_own(node)]
    if len(found) != 1:
        raise ValueError(
            f"The state contains {len(found)} states of hare_and_tortoise, expected 1. "
            "Pass the state of an optimizer that contains hare_and_tortoise once."
        )
    return found[0].slow

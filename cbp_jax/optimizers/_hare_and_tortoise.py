"""Hare and tortoise: fast params are set back to their slow average, at events."""

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
    slow: PyTree  # The tortoise, like the params, of at least float32.


def hare_and_tortoise(
    schedule: Schedule, *, decay: float | jax.Array = 0.999
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a slow average of the params and sets them back to it at events.

    After each update the tortoise follows the hare, the params that are trained,

    .. math::
      \theta_\text{slow} \leftarrow
        \mu \theta_\text{slow} + (1 - \mu) \theta_\text{fast},

    and after each update of the schedule, :math:`\theta_\text{fast} \leftarrow
    \theta_\text{slow}`. Both begin with the same params. The last link of a chain::

      tx = optax.chain(optax.sgd(1e-2), hare_and_tortoise(every(1000)))

    The network to evaluate is the tortoise, `slow_params(state)`. Running statistics of
    a normalization are no params: average and set them back yourself. The optimizer's
    state goes on at an event.

    In the base optimizer of a transformation that resets units, the slow weights of a
    reborn unit become its fresh ones, as all its optimizer state becomes newborn;
    `keep_state=("slow",)` there keeps the old ones.

    Args:
      schedule: when the hare goes back, see `cbp_jax.optimizers.every`; without events
        the updates are left as they are, bit for bit.
      decay: :math:`\mu` in [0, 1], published 0.999; with 0 the tortoise is the hare and
        the updates are left as they are, bit for bit.

    Returns:
      An optax transformation of state `HareAndTortoiseState`; its update needs the
      params.

    Raises:
      ValueError: `decay` is out of its range, or the update gets no params.

    References:
      Lee et al., `Slow and steady wins the race: maintaining plasticity with hare and
      tortoise networks <https://arxiv.org/abs/2406.02596>`_, 2024.
    """
    check_range("decay", decay, 0, 1)

    def init(params: PyTree) -> HareAndTortoiseState:
        # A copy, because the params themselves may be donated to the next update.
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
        # With a known decay of 0 there is nothing to set back, and even a branch that
        # changes nothing changes how XLA rounds.
        if not is_known(decay, lambda decay: decay == 0):
            updates, _ = change_params(
                is_due, lambda params, key: slow, None, updates, params
            )
        return updates, HareAndTortoiseState(EventState(count, None), slow)

    return optax.GradientTransformationExtraArgs(init, update)


def slow_params(state: PyTree) -> PyTree:
    """Returns the slow params, those to evaluate, from an optimizer state.

    Args:
      state: state of `hare_and_tortoise` or of a transformation that contains it.

    Returns:
      A tree like the params, of at least float32.

    Raises:
      ValueError: the state holds no slow params, or several.
    """

    def is_own(node: PyTree) -> bool:
        return isinstance(node, HareAndTortoiseState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_own) if is_own(node)]
    if len(found) != 1:
        raise ValueError(
            f"The state holds {len(found)} states of hare_and_tortoise; pass the state "
            "of an optimizer with one."
        )
    return found[0].slow

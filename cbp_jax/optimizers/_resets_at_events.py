"""Controls: reinitialize params or optimizers at events."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
import optax

from cbp_jax._numbers import check_params
from cbp_jax._trees import are_named
from cbp_jax._types import PyTree
from cbp_jax._units import path_string
from cbp_jax._xla import cond_any_lane
from cbp_jax.optimizers._events import (
    EventState,
    Schedule,
    act_at,
    draw_params,
    new_events,
    next_params,
    next_update,
    without_closure,
)


class ResetOptimizerState(NamedTuple):
    """State of `reset_optimizer_at` and `reset_adam_count_at`."""

    base_state: PyTree  # The base optimizer's state.
    events: EventState  # Its key is None.


def reset_params_at(
    schedule: Schedule,
    init_fn: Callable[[jax.Array], PyTree],
    *,
    layers: str | Sequence[str] | None = None,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Reinitializes all params, or those of some layers, after updates of a schedule.

    Put it last in a chain. With `reset_optimizer_at` it makes a full reset, so that
    the network learns each task from scratch::

      init_fn = lambda key: model.init(key, inputs)["params"]
      fresh_params = reset_params_at(every(10_000), init_fn, key=key)
      tx = reset_optimizer_at(
          optax.chain(optax.adam(1e-3), fresh_params), every(10_000)
      )

    In this order, states that copy the params, such as those of `l2_init` and
    `hare_and_tortoise`, copy the new params.

    Args:
      schedule: which updates are events; see `cbp_jax.optimizers.every`. Without events
        the updates do not change, bit for bit.
      init_fn: function of a typed key that returns newly initialized params.
      layers: paths of layers or leaves to reinitialize, including all leaves below
        them: `"head"`, or `("dense_1", "head")` for the last two layers; None for all
        params.
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation with state `EventState`. Its update needs the params.

    Raises:
      ValueError: a path in `layers` is not in the params, the update gets no params, or
        the tree from `init_fn` does not match the params.

    References:
      Nikishin et al., `The primacy bias in deep reinforcement learning
      <https://arxiv.org/abs/2205.07802>`_, 2022, which resets the last layers.
    """
    if layers is not None:
        layers = (layers,) if isinstance(layers, str) else tuple(layers)

    def act(params: PyTree, key: jax.Array) -> PyTree:
        return jax.tree.map(
            lambda is_drawn, fresh, param: fresh if is_drawn else param,
            _are_drawn(params, layers),
            draw_params(init_fn, key, params),
            params,
        )

    events = act_at(schedule, act, key=key)

    def init(params: PyTree) -> EventState:
        _are_drawn(params, layers)
        return events.init(params)

    return optax.GradientTransformationExtraArgs(init, events.update)


def reset_optimizer_at(
    base_optimizer: optax.GradientTransformation, schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
    """Reinitializes an optimizer's state after updates of a schedule.

    An event sets the state to `init` of the params after the update. Moments are 0, and
    bias corrections, learning rate schedules, and the ages and utilities of a
    transformation that resets units start over. Two things continue: typed keys, so
    that no random numbers repeat, and event counts (`EventState`), so that the same
    schedule works inside and outside. The updates are those of the base optimizer, bit
    for bit.

    Args:
      base_optimizer: any optax transformation. It receives all extra arguments, if it
        takes any.
      schedule: which updates are events; see `cbp_jax.optimizers.every`.

    Returns:
      An optax transformation with state `ResetOptimizerState`. Its update needs the
      params. See `reset_params_at` for a full reset.

    Raises:
      ValueError: the update gets no params.
    """
    base_optimizer = optax.with_extra_args_support(base_optimizer)

    def init(params: PyTree) -> ResetOptimizerState:
        return ResetOptimizerState(base_optimizer.init(params), new_events())

    def update(
        updates: PyTree,
        state: ResetOptimizerState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ResetOptimizerState]:
        check_params("reset_optimizer_at", params)
        updates, base_state = base_optimizer.update(
            updates, state.base_state, params, **extra_args
        )
        is_due, count = next_update(schedule, state.events)
        pure_init, constants = without_closure(base_optimizer.init, params)

        def work(operand: PyTree) -> PyTree:
            is_due, base_state, updates, params, constants = operand
            fresh = pure_init(constants, next_params(params, updates))
            return jax.tree_util.tree_map_with_path(
                lambda path, old, new: (
                    old
                    if _goes_on(path, old)
                    else jnp.where(is_due, new.astype(old.dtype), old)
                ),
                base_state,
                fresh,
                is_leaf=lambda node: isinstance(node, EventState),
            )

        def skip(operand: PyTree) -> PyTree:
            return operand[1]

        operand = (is_due, base_state, updates, params, constants)
        base_state = cond_any_lane(is_due, work, skip, operand)
        return updates, ResetOptimizerState(base_state, EventState(count, None))

    return optax.GradientTransformationExtraArgs(init, update)


def reset_adam_count_at(
    base_optimizer: optax.GradientTransformation, schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
    r"""Resets Adam's count of updates, but not its moments, at events: Adam-Rel.

    After an event, Adam's bias correction counts from 0 again:

    .. math::
      t \leftarrow 0, \qquad
      \theta \leftarrow \theta - \alpha
      \frac{\mu / (1 - \beta_1^t)}{\sqrt{\nu / (1 - \beta_2^t)} + \epsilon}

    The correction of the old moments is then too large, and that of :math:`\nu` more so
    than that of :math:`\mu`. Where gradients stay as large as before, the first steps
    are shorter, by :math:`\sqrt{1 - \beta_2} / (1 - \beta_1)`. Where they grow
    suddenly, the first steps are about as long as the learning rate, whereas those of
    Adam are longer by the inverse of that.

    Args:
      base_optimizer: an optax transformation with Adam in it, or with a relative of
        Adam whose state has the fields `count`, `mu` and `nu`. It receives all extra
        arguments, if it takes any. Counts of learning rate schedules are not reset.
      schedule: which updates are events; see `cbp_jax.optimizers.every`. Without events
        the updates do not change, bit for bit.

    Returns:
      An optax transformation with state `ResetOptimizerState`.

    Raises:
      ValueError: the base optimizer has no such state.

    References:
      Ellis et al., `Adam on local time: addressing nonstationarity in RL with relative
      Adam timesteps <https://arxiv.org/abs/2412.17113>`_, NeurIPS 2024.
    """
    base_optimizer = optax.with_extra_args_support(base_optimizer)

    def init(params: PyTree) -> ResetOptimizerState:
        base_state = base_optimizer.init(params)
        if not any(map(_is_adam, jax.tree.leaves(base_state, is_leaf=_is_adam))):
            raise ValueError(
                "reset_adam_count_at got a base optimizer whose state has no fields "
                "count, mu and nu. Pass one with Adam in it, such as optax.adam(1e-3)."
            )
        return ResetOptimizerState(base_state, new_events())

    def update(
        updates: PyTree,
        state: ResetOptimizerState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ResetOptimizerState]:
        updates, base_state = base_optimizer.update(
            updates, state.base_state, params, **extra_args
        )
        is_due, count = next_update(schedule, state.events)

        def reset(node: Any) -> Any:
            if not _is_adam(node):
                return node
            return node._replace(count=jnp.where(is_due, 0, node.count))

        base_state = jax.tree.map(reset, base_state, is_leaf=_is_adam)
        return updates, ResetOptimizerState(base_state, EventState(count, None))

    return optax.GradientTransformationExtraArgs(init, update)


def _is_adam(node: object) -> bool:
    return {"count", "mu", "nu"} <= set(getattr(node, "_fields", ()))


def _are_drawn(params: PyTree, layers: Sequence[str] | None) -> PyTree:
    if layers is None:
        return jax.tree.map(lambda _: True, params)
    return are_named(params, layers, "layers")


def _goes_on(path: KeyPath, old: EventState | jax.Array) -> bool:
    return (
        isinstance(old, EventState)
        or path_string(path[-1:]) == "rng_key"
        or jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
    )

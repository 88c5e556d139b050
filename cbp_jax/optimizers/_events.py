"""Events: changes to the params at certain updates, such as task changes.

This module is independent of tasks: a schedule decides which updates are events.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
import jax.numpy as jnp
import optax

from cbp_jax._numbers import check_params, check_range, key_bits, key_of, lead_to, widen
from cbp_jax._types import PyTree
from cbp_jax._units import leaf_paths
from cbp_jax._xla import cond_any_lane, round_to_dtype

# Maps the number of updates so far, including this one (int32 scalar, at least 1), to
# whether this one is an event (bool scalar). A Python bool says so when compiling: then
# the update has no conditional.
Schedule = Callable[[jax.Array], jax.Array | bool]


class EventState(NamedTuple):
    """State of `act_at`, and event state of other transformations."""

    count: jax.Array  # int32 scalar, updates so far.
    rng_key: jax.Array | None  # Bits of a key, split at each event; None without a key.


def act_at(
    schedule: Schedule,
    act: Callable[..., PyTree],
    *,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies a function to the params after the updates of a schedule.

    When the schedule is true at an update, the params after it become
    `act(params, key)`. Put it last in a chain::

      halve = lambda params, key: jax.tree.map(lambda leaf: leaf / 2, params)
      tx = optax.chain(optax.sgd(1e-2), act_at(every(1000), halve))

    All other updates, and all entries that `act` does not change, pass through bit for
    bit. Without an event `act` does not run, even if the lanes of a `vmap` have
    different schedules. If any lane has an event, all lanes run it.

    Args:
      schedule: which updates are events; see `every` and `at`. It may use traced
        arrays. For `optax.inject_hyperparams` it is a static argument.
      act: function of the params and a key that returns new params, which are cast to
        the dtypes of the old ones. It may use traced arrays.
      key: PRNG key from which each event derives a new key for `act`; None passes None.
        Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation with state `EventState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params.
    """

    def init(params: PyTree) -> EventState:
        del params
        return new_events(key)

    def update(
        updates: PyTree,
        state: EventState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EventState]:
        del extra_args
        check_params("An event", params)
        is_due, count = next_update(schedule, state)
        rng_key = key_of(state.rng_key, key)
        updates, rng_key = change_params(is_due, act, rng_key, updates, params)
        return updates, EventState(count, key_bits(rng_key))

    return optax.GradientTransformationExtraArgs(init, update)


def every(num_updates: int | jax.Array) -> Schedule:
    """Returns a schedule that makes every `num_updates`-th update an event.

    Args:
      num_updates: at least 1. May be traced.

    Raises:
      ValueError: `num_updates` is below 1.
    """
    check_range("num_updates", num_updates, 1, float("inf"))

    def schedule(count: jax.Array) -> jax.Array:
        return count % jnp.asarray(num_updates).astype(jnp.int32) == 0

    return schedule


def at(*counts: int | jax.Array) -> Schedule:
    """Returns a schedule that makes the given updates events.

    Args:
      *counts: update numbers, starting at 1; without any there is no event. May be
        traced.

    Raises:
      ValueError: one of `counts` is below 1.
    """
    for known in counts:
        check_range("counts", known, 1, float("inf"))

    def schedule(count: jax.Array) -> jax.Array:
        return jnp.any(count == jnp.asarray(counts).astype(jnp.int32))

    return schedule


def new_events(key: jax.Array | None = None) -> EventState:
    """Returns the state before the first update."""
    return EventState(jnp.zeros((), jnp.int32), key_bits(key))


def next_update(
    schedule: Schedule, state: EventState
) -> tuple[jax.Array | bool, jax.Array]:
    """Returns whether the next update is an event (bool), and its count (int32)."""
    count = optax.safe_increment(state.count)
    is_event = schedule(count)
    if not isinstance(is_event, bool):
        is_event = jnp.asarray(is_event, bool)
    return is_event, count


def pass_events(schedule: Schedule) -> Callable[..., tuple[PyTree, EventState]]:
    """Returns the update function of a transformation whose events do nothing."""

    def update(
        updates: PyTree,
        state: EventState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EventState]:
        del params, extra_args
        _, count = next_update(schedule, state)
        return updates, EventState(count, state.rng_key)

    return update


def change_params(
    is_due: jax.Array | bool,
    act: Callable[..., PyTree],
    key: jax.Array | None,
    updates: PyTree,
    params: PyTree,
) -> tuple[PyTree, jax.Array | None]:
    """Returns the updates that include a possible event, and the next key.

    Args:
      is_due: bool scalar, whether this update is an event. A Python bool compiles
        only what happens then.
      act: see `act_at`.
      key: typed PRNG key or None; returned unchanged without an event.
      updates: updates of the params.
      params: the params before the update.
    """
    if is_due is False:
        return jax.tree.map(widen, updates, params), key
    pure_act, constants = without_closure(act, params, key)

    def work(operand: PyTree) -> tuple[PyTree, jax.Array | None]:
        is_due, key, updates, params, constants = operand
        next_key = act_key = None
        if key is not None:
            next_key, act_key = jax.random.split(key)
            next_key = jnp.where(is_due, next_key, key)
        moved = next_params(params, updates)

        def change(
            update: jax.Array, param: jax.Array, moved: jax.Array, new: jax.Array
        ) -> jax.Array:
            new = round_to_dtype(new.astype(param.dtype))
            return lead_to(new, is_due & (new != moved), update, param)

        new = pure_act(constants, moved, act_key)
        return jax.tree.map(change, updates, params, moved, new), next_key

    def skip(operand: PyTree) -> tuple[PyTree, jax.Array | None]:
        _, key, updates, params, _ = operand
        return jax.tree.map(widen, updates, params), key

    return cond_any_lane(is_due, work, skip, (is_due, key, updates, params, constants))


def next_params(params: PyTree, updates: PyTree) -> PyTree:
    """Returns the params after the updates, rounded to their dtypes."""
    return jax.tree.map(round_to_dtype, optax.apply_updates(params, updates))


def without_closure(
    function: Callable[..., PyTree], *examples: PyTree
) -> tuple[Callable[..., PyTree], list[jax.Array]]:
    """Turns the arrays that a function closes over into an argument.

    `cond_any_lane` does not accept functions that close over traced arrays.

    Args:
      function: maps pytrees of arrays to a pytree of arrays.
      *examples: arguments with the shapes and dtypes of later calls.

    Returns:
      `pure` and `constants` such that `pure(constants, *arguments)` is
      `function(*arguments)`.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    # `pure` outlives the trace, so it must not keep references to traced values.
    jaxpr, constants = closed.jaxpr, list(closed.consts)
    treedef = jax.tree.structure(shapes)

    def pure(constants: list[jax.Array], *arguments: PyTree) -> PyTree:
        flat = jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))
        return treedef.unflatten(flat(*jax.tree.leaves(arguments)))

    return pure, constants


def draw_params(
    init_fn: Callable[[jax.Array], PyTree], key: jax.Array, params: PyTree
) -> PyTree:
    """Returns `init_fn(key)`, cast to the dtypes of the params.

    Raises:
      ValueError: the result does not have the structure and shapes of the params.
    """
    fresh = init_fn(key)
    given, wanted = (
        {
            path.name: jnp.shape(leaf)
            for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
        }
        for tree in (fresh, params)
    )
    differing = sorted(
        path for path in given | wanted if given.get(path) != wanted.get(path)
    )
    if differing or jax.tree.structure(fresh) != jax.tree.structure(params):
        raise ValueError(
            f"init_fn(key) returned leaves {given}, but the params have {wanted}: "
            f"{differing or 'the containers'} differ. Return a tree like the params, "
            'in Flax `module.init(key, inputs)["params"]`.'
        )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), fresh, params)

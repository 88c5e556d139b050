"""Selective weight reinitialization: at events, redraw the least useful weights."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import (
    at_least_float32,
    check_choice,
    check_params,
    check_range,
    key_bits,
    key_of,
)
from cbp_jax._trees import are_named
from cbp_jax._types import PyTree
from cbp_jax.optimizers._events import (
    EventState,
    Schedule,
    change_params,
    draw_params,
    new_events,
    next_update,
)


def selective_weight_reinitialization(
    schedule: Schedule,
    init_fn: Callable[[jax.Array], PyTree],
    *,
    fraction: float | jax.Array,
    utility: str = "magnitude",
    selection: str = "fraction",
    exclude: Sequence[str] = (),
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Redraws the least useful weights of every tensor at events.

    The utility of a weight is :math:`|w|` or :math:`|w g|`, with the weight w after the
    update and the gradient g of that update. After each update of the schedule, the
    :math:`f n` weights of lowest utility among the n weights of a tensor are redrawn
    from their initial distribution. A fractional count is rounded up with probability
    equal to its fraction. Each kernel, bias, scale and shift is a tensor. Put it last
    in a chain::

      init_fn = lambda key: model.init(key, inputs)["params"]
      swr = selective_weight_reinitialization(
          every(2000), init_fn, fraction=0.2, key=key
      )
      tx = optax.chain(optax.sgd(1e-2), swr)

    The authors also try setting weights to the mean of their distribution: pass an
    `init_fn` that returns the means. As in their code, the other transformations keep
    their state for redrawn weights, so a redrawn weight inherits the momentum of the
    old one.

    Args:
      schedule: which updates are events; see `cbp_jax.optimizers.every`. The best
        published runs use every 128th to 4096th.
      init_fn: function of a typed key that returns newly initialized params.
      fraction: f in [0, 1]; published 0.2 to 0.4. With `selection="threshold"`, any
        nonnegative number; published 1e-5 to 1e-3. 0 does not change the updates, bit
        for bit. May be traced.
      utility: `"magnitude"` for :math:`|w|`, `"gradient"` for :math:`|w g|`. The latter
        needs the gradient, `tx.update(grads, state, params, grad=grads)`, because
        earlier transformations in the chain have modified it.
      selection: `"fraction"`, or `"threshold"` for all weights whose utility is at most
        f times the mean over their tensor.
      exclude: paths of layers or leaves to leave alone, such as `"head"` or
        `"head/kernel"`.
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation with state `EventState`. Its update needs the params.

    Raises:
      ValueError: an option is unknown, `fraction` is out of range, a path in `exclude`
        is not in the params, the update gets no params or gradient, or the tree from
        `init_fn` does not match the params.

    References:
      Hernandez-Garcia et al., `Reinitializing weights vs units for maintaining
      plasticity in neural networks <https://arxiv.org/abs/2508.00212>`_, 2025. Their
      code can also average utilities over time; the published runs do not.
    """
    check_choice("utility", utility, ("magnitude", "gradient"))
    check_choice("selection", selection, ("fraction", "threshold"))
    check_range("fraction", fraction, 0, 1 if selection == "fraction" else math.inf)
    choose = _lowest if selection == "fraction" else _at_most_mean
    exclude = tuple(exclude)

    def init(params: PyTree) -> EventState:
        are_named(params, exclude, "exclude")
        return new_events(key)

    def update(
        updates: PyTree,
        state: EventState,
        params: PyTree | None = None,
        *,
        grad: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EventState]:
        del extra_args
        check_params("selective_weight_reinitialization", params)
        if utility == "gradient" and grad is None:
            raise ValueError(
                'The update got no grad, but utility="gradient" needs the gradient. '
                "Call update(updates, state, params, grad=grads)."
            )

        def act(params: PyTree, key: jax.Array) -> PyTree:
            draw_key, choice_key = jax.random.split(key)
            scores = jax.tree.map(_magnitude, params)
            if utility == "gradient":
                scores = jax.tree.map(
                    jnp.multiply, scores, jax.tree.map(_magnitude, grad)
                )

            def redraw(
                param: jax.Array,
                fresh: jax.Array,
                score: jax.Array,
                key: jax.Array,
                is_excluded: bool,
            ) -> jax.Array:
                if is_excluded or not param.size:
                    return param
                is_chosen = choose(score, jnp.asarray(fraction, score.dtype), key)
                return jnp.where(is_chosen, fresh, param)

            return jax.tree.map(
                redraw,
                params,
                draw_params(init_fn, draw_key, params),
                scores,
                optax.tree.split_key_like(choice_key, params),
                are_named(params, exclude, "exclude"),
            )

        is_event, count = next_update(schedule, state)
        is_due = is_event is not False and is_event & (jnp.asarray(fraction) > 0)
        rng_key = key_of(state.rng_key, key)
        updates, rng_key = change_params(is_due, act, rng_key, updates, params)
        return updates, EventState(count, key_bits(rng_key))

    return optax.GradientTransformationExtraArgs(init, update)


def _magnitude(leaf: jax.Array) -> jax.Array:
    return jnp.abs(leaf.astype(at_least_float32(leaf.dtype)))


def _lowest(score: jax.Array, share: jax.Array, key: jax.Array) -> jax.Array:
    """Marks the share with the lowest scores; ties go to the lowest index."""
    exact = share * score.size
    whole = jnp.floor(exact)
    is_rounded_up = jax.random.uniform(key, (), exact.dtype) < exact - whole
    number = whole.astype(jnp.int32) + is_rounded_up.astype(jnp.int32)
    order = jnp.argsort(score.ravel())
    ranks = jnp.zeros(score.size, jnp.int32)
    ranks = ranks.at[order].set(jnp.arange(score.size, dtype=jnp.int32))
    return (ranks < number).reshape(score.shape)


def _at_most_mean(score: jax.Array, share: jax.Array, key: jax.Array) -> jax.Array:
    """Marks the scores that are at most `share` times their mean."""
    del key
    return score <= share * jnp.mean(score)

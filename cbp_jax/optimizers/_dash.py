"""DASH: at events, shrinks weights that do not point along the negative gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import (
    at_least_float32,
    check_choice,
    check_params,
    check_range,
    is_known,
)
from cbp_jax._trees import is_kernel
from cbp_jax._types import PyTree
from cbp_jax._units import LeafPath, leaf_paths
from cbp_jax.optimizers._events import (
    EventState,
    Schedule,
    change_params,
    new_events,
    next_update,
)


class DashState(NamedTuple):
    """State of `dash`."""

    base_state: PyTree  # Of the base optimizer.
    events: EventState  # Its key is None.
    # G, like the params, in at least float32: the running average of the negative
    # gradient since the last event.
    direction: PyTree


def dash(
    base_optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    smoothing: float | jax.Array = 0.3,
    lowest: float | jax.Array = 0.3,
    layout: str = "io",
) -> optax.GradientTransformationExtraArgs:
    r"""Direction-aware shrinking: wraps an optimizer and shrinks weights at events.

    Every update averages in the negative gradient g, and an event shrinks the weights:

    .. math::
      G \leftarrow (1 - a) G - a g, \qquad
      \text{at events: } W \leftarrow W \operatorname{clip}(\cos(G, W), \lambda, 1),
      \quad G \leftarrow 0

    with one cosine for each unit of a dense layer, over its incoming weights; for each
    pair of an input and an output channel of a convolution, over the window; and for
    each layer's bias vector. Params of normalizations do not change. A cosine with a
    vector of zeros is 0. Wrap the optimizer::

      tx = cbp_jax.optimizers.dash(optax.adam(1e-3), every(10_000))

    The authors shrink before they train on new data. They compute G in one pass over
    all data, old and new, with fixed params. On a stream, this function instead
    averages the gradients that it gets anyway, since the last event, at the params of
    those updates.

    Args:
      base_optimizer: the optimizer. It gets the gradients unchanged.
      schedule: which updates are events; see `cbp_jax.optimizers.every`. Without events
        the updates are those of the base optimizer, bit for bit.
      smoothing: a in [0, 1], published 0.1 to 0.3.
      lowest: :math:`\lambda` in [0, 1], published 0.05 to 0.3. With 1 nothing shrinks,
        and the updates are those of the base optimizer, bit for bit.
      layout: "io" for kernels `[..., in, out]` (flax, Haiku), "oi" for `[out, in, ...]`
        (Equinox).

    Returns:
      An optax transformation with state `DashState`. Its update needs the params.

    Raises:
      ValueError: a number is out of its range, the layout is unknown, or the update
        gets no params.

    References:
      Shin et al., `DASH: warm-starting neural network training in stationary settings
      without loss of plasticity <https://arxiv.org/abs/2410.23495>`_, 2024.
    """
    check_range("smoothing", smoothing, 0, 1)
    check_range("lowest", lowest, 0, 1)
    check_choice("layout", layout, ("io", "oi"))
    base = optax.with_extra_args_support(base_optimizer)

    def init(params: PyTree) -> DashState:
        direction = jax.tree.map(
            lambda param: jnp.zeros(param.shape, at_least_float32(param.dtype)), params
        )
        return DashState(base.init(params), new_events(), direction)

    def update(
        updates: PyTree,
        state: DashState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, DashState]:
        check_params("dash", params)

        def average_in(average: jax.Array, grad: jax.Array) -> jax.Array:
            a = jnp.asarray(smoothing, average.dtype)
            return (1 - a) * average - a * grad.astype(average.dtype)

        direction = jax.tree.map(average_in, state.direction, updates)
        updates, base_state = base.update(
            updates, state.base_state, params, **extra_args
        )
        is_due, count = next_update(schedule, state.events)
        # With a known bound of 1 there is nothing to shrink, and even a branch that
        # does nothing changes how XLA rounds.
        if not is_known(lowest, lambda lowest: lowest == 1):
            updates, _ = change_params(
                is_due,
                lambda params, key: _shrink(params, direction, lowest, layout),
                None,
                updates,
                params,
            )
        direction = jax.tree.map(
            lambda average: jnp.where(is_due, 0, average), direction
        )
        return updates, DashState(base_state, EventState(count, None), direction)

    return optax.GradientTransformationExtraArgs(init, update)


def _shrink(
    params: PyTree, direction: PyTree, lowest: float | jax.Array, layout: str
) -> PyTree:
    paths = leaf_paths(params)
    leaves, treedef = jax.tree.flatten(params)
    layers = {
        path.layer
        for path, leaf in zip(paths, leaves, strict=True)
        if is_kernel(path, leaf)
    }

    def shrink(path: LeafPath, param: jax.Array, along: jax.Array) -> jax.Array:
        if path.layer not in layers:  # A normalization has no kernel.
            return param
        wide = param.astype(along.dtype)
        axes = _axes_of_cosine(path, param, layout)
        product = jnp.sum(wide * along, axes, keepdims=True)
        norms = jnp.sum(wide**2, axes, keepdims=True) * jnp.sum(
            along**2, axes, keepdims=True
        )
        cosine = product / jnp.sqrt(jnp.where(norms > 0, norms, 1))
        return wide * jnp.clip(cosine, jnp.asarray(lowest, wide.dtype), 1)

    return treedef.unflatten(
        [
            shrink(*triple)
            for triple in zip(paths, leaves, jax.tree.leaves(direction), strict=True)
        ]
    )


def _axes_of_cosine(
    path: LeafPath, param: jax.Array, layout: str
) -> tuple[int, ...] | None:
    """Returns the axes of the vectors whose cosine is taken; None for all axes."""
    if not is_kernel(path, param):
        return None
    if param.ndim == 2:
        return (0,) if layout == "io" else (1,)
    window = range(param.ndim - 2) if layout == "io" else range(2, param.ndim)
    return tuple(window)

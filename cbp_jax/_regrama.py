"""ReGraMa: periodically resets all units whose gradient is small for their layer.

Shapes: B batch, P positions, N units.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import optax

from cbp_jax._dormancy import dormancy_rule
from cbp_jax._gradient_scores import EPSILON, magnitudes
from cbp_jax._numbers import check_range, is_known
from cbp_jax._resets import reset_by_rule
from cbp_jax._types import AxisName
from cbp_jax._units import UnitGroup, freeze


class ReGraMaState(NamedTuple):
    """State of ReGraMa for the units of one group."""

    age: jax.Array  # int32 [N], optimizer updates since the last reset.
    total: jax.Array  # [N], sum of gradient magnitudes since the last check.


def regrama(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    threshold: float | jax.Array = 0.01,
    reset_every: int | jax.Array = 1000,
    is_check: bool | None = None,
    gradient: str = "weights",
    over_interval: bool = False,
    axis_name: AxisName | None = None,
    key: jax.Array,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by resets of units that hardly learn.

    Every `reset_every` updates, the gradient magnitudes :math:`g_i` of the units of a
    group are compared with each other,

    .. math::
      s_i = \frac{g_i}{\frac{1}{N} \sum_j g_j + 10^{-8}},

    and all units with :math:`s_i \le \tau` are reset. In a group without any gradient,
    these are all units. :math:`g_i` is the mean of :math:`|\partial L / \partial w|`
    over the incoming weights w of unit i, or that of
    :math:`|\partial L / \partial h_i|` over the batch.

    The gradient is the one that the update receives; `Measurements` explains how to
    leave a penalty out of it. Under `optax.MultiSteps` it is the average over the
    mini-batches.

    Example::

      tx = cbp_jax.regrama(optax.adam(1e-3), units, key=key)
      updates, state = tx.update(grads, state, params, features=features)

    Args:
      base_optimizer: see `reset_by_rule`.
      units: see `reset_by_rule`.
      threshold: :math:`\tau`. 0 resets units whose gradient is exactly 0. A negative
        threshold resets none and is the base optimizer, bit for bit if it is not
        traced. McCutcheon et al. (2026; see `cpr`) compare with 0.25 on permuted MNIST
        and 0.1 on CIFAR-100.
      reset_every: F, number of updates between checks.
      is_check: whether this update is a check; see `redo`.
      gradient: "weights" takes the gradient of the incoming weights, as the authors'
        code does, and "activations" that of the activation, as their paper does. The
        latter needs the keyword `feature_gradients`; see `reset_by_rule`.
      over_interval: sum up the magnitudes of all updates since the last check. False
        takes the gradient of this update alone, as published. On a stream of single
        examples that would reset all units that are inactive for one example.
      axis_name: see `continual_backprop`; only gradients of activations use it.
      key: see `reset_by_rule`.
      **options: `initializer`, `moments`, `keep_state` and `between_reset` of
        `reset_by_rule`.

    Returns:
      As `reset_by_rule`; `state.units` has a `ReGraMaState` for each group.

    Raises:
      ValueError: `reset_every` is below 1, `gradient` is unknown, or as in
        `reset_by_rule`.

    References:
      Liu et al., `Measure gradients, not activations! Enhancing neuronal activity in
      deep reinforcement learning <https://arxiv.org/abs/2505.24061>`_, 2025. Their code
      redraws incoming weights and leaves outgoing ones alone; here the latter become 0,
      as in every reset of this library.
    """
    check_range("reset_every", reset_every, 1, math.inf)
    magnitude_of, needs = magnitudes(gradient, axis_name)
    is_off = is_known(threshold, lambda threshold: threshold < 0)

    rule = dormancy_rule(
        ReGraMaState,
        magnitude_of,
        threshold=threshold,
        epsilon=EPSILON,
        reset_every=reset_every,
        is_check=is_check,
        over_interval=over_interval,
        needs=needs,
    )
    return reset_by_rule(
        base_optimizer,
        freeze(units, is_off or is_check is False),
        rule,
        key=key,
        **options,
    )

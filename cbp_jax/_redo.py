"""ReDo: periodically resets all units that are dormant relative to their layer.

Shapes: B batch, P positions, N units.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._dormancy import dormancy_rule
from cbp_jax._numbers import check_range, is_known, over_replicas
from cbp_jax._resets import Measurements, reset_by_rule
from cbp_jax._types import AxisName
from cbp_jax._units import UnitGroup, freeze

_EPSILON = 1e-9


class ReDoState(NamedTuple):
    """State of ReDo for the units of one group."""

    age: jax.Array  # int32 [N], optimizer updates since the last reset.
    total: jax.Array  # [N], sum of mean |h| over the updates since the last check.


def redo(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    threshold: float | jax.Array = 0.1,
    reset_every: int | jax.Array = 1000,
    is_check: bool | None = None,
    over_interval: bool = False,
    between_reset: str = "zero",
    axis_name: AxisName | None = None,
    key: jax.Array,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by resets of dormant units.

    Every `reset_every` updates, the units of a group are compared with each other,

    .. math::
      s_i = \frac{\overline{|h_i|}}
        {\frac{1}{N} \sum_j \overline{|h_j|} + 10^{-9}},

    and all units with :math:`s_i \le \tau` are reset. In a dead group, these are all
    units.

    A weight from one reset unit to another becomes 0. The paper does not specify this;
    the authors' code draws the incoming weights of all layers and then zeroes the
    outgoing ones. A unit that is reset together with all units it reads is therefore
    silent until the next check.

    Example::

      tx = cbp_jax.redo(optax.adam(1e-3), units, threshold=0.025, key=key)
      updates, state = tx.update(grads, state, params, features=features)

    Args:
      base_optimizer: see `reset_by_rule`.
      units: see `reset_by_rule`.
      threshold: :math:`\tau`. 0 resets units that are exactly 0. A negative threshold
        resets none and is the base optimizer, bit for bit if it is not traced.
      reset_every: F, number of updates between checks.
      is_check: whether this update is a check, if that is known when compiling, such as
        in the inner and the outer of two nested loops. False compiles none of it. None
        compares the number of updates with F.
      over_interval: average |h| over all examples since the last check. False averages
        over the batch of this update, as published. A stream of single examples needs
        True.
      between_reset: see `reset_by_rule`; "fresh" redraws weights from one reset unit to
        another, as continual backprop does.
      axis_name: see `continual_backprop`.
      key: see `reset_by_rule`.
      **options: `initializer`, `moments` and `keep_state` of `reset_by_rule`.

    Returns:
      As `reset_by_rule`; `state.units` has a `ReDoState` for each group.

    Raises:
      ValueError: `reset_every` is below 1, or as in `reset_by_rule`.

    References:
      Sokar et al., `The dormant neuron phenomenon in deep reinforcement learning
      <https://arxiv.org/abs/2302.12902>`_, 2023, and its code in Dopamine.
    """
    check_range("reset_every", reset_every, 1, math.inf)
    is_off = is_known(threshold, lambda threshold: threshold < 0)

    def magnitude(measurements: Measurements) -> jax.Array:
        batch = jnp.mean(jnp.abs(measurements.activation), axis=(0, 1))
        return over_replicas(batch, axis_name)

    rule = dormancy_rule(
        ReDoState,
        magnitude,
        threshold=threshold,
        epsilon=_EPSILON,
        reset_every=reset_every,
        is_check=is_check,
        over_interval=over_interval,
    )
    return reset_by_rule(
        base_optimizer,
        freeze(units, is_off or is_check is False),
        rule,
        key=key,
        between_reset=between_reset,
        **options,
    )

"""Calibrated partial resets: moves units that hardly learn toward fresh weights.

Shapes: B batch, P positions, N units.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from cbp_jax._dormancy import is_due, relative_to_layer
from cbp_jax._gradient_scores import EPSILON, magnitudes
from cbp_jax._numbers import check_range, is_known_zero, running_average
from cbp_jax._resets import Choice, Measurements, Rule, reset_by_rule
from cbp_jax._types import AxisName
from cbp_jax._units import UnitGroup, freeze


class CPRState(NamedTuple):
    """State of calibrated partial resets for the units of one group."""

    age: jax.Array  # int32 [N], optimizer updates since the last complete reset.
    score: jax.Array  # [N], its running average since the last resets.
    # [N], how far the last update reset the unit; 0 after a complete reset, too.
    fraction: jax.Array


def cpr(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    replacement_rate: float | jax.Array = 0.015,
    sharpness: float | jax.Array = 16.0,
    decay_rate: float | jax.Array = 0.99,
    reset_every: int | jax.Array = 1000,
    is_check: bool | None = None,
    gradient: str = "weights",
    moments: str = "keep",
    biases: str = "keep",
    axis_name: AxisName | None = None,
    key: jax.Array,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by partial resets of units that learn little.

    The score of a unit is its gradient magnitude :math:`g_i` relative to its layer, as
    in `regrama`. Its running average starts at 1, the mean of a layer:

    .. math::
      s_i = \frac{g_i}{\frac{1}{N} \sum_j g_j + 10^{-8}}, \quad
      u_i \leftarrow d u_i + (1 - d) s_i

    Every `reset_every` updates, unit i is reset by a fraction :math:`f_i`. With fresh
    weights :math:`W'_i`,

    .. math::
      f_i &= \rho \min(1, 2 \operatorname{sigmoid}(-k (u_i - 1))) \\
      W_i^{in} &\leftarrow (1 - f_i) W_i^{in} + f_i W'_i, \quad
      W_i^{out} \leftarrow (1 - f_i) W_i^{out}, \quad
      u_i \leftarrow 1

    A unit below the mean is reset by :math:`\rho`. The farther a unit is above it, the
    less it is reset. Biases, normalization parameters, slopes, moments and ages do not
    change. Unless :math:`\rho = 1`, no unit is reset completely, so `replaced` lists
    none and `num_replaced` stays 0. The state has the fractions of the last update.

    Example::

      tx = cbp_jax.cpr(optax.adam(1e-3), units, key=key)
      updates, state = tx.update(grads, state, params, features=features)
      state.units["dense_0"].fraction

    Args:
      base_optimizer: see `reset_by_rule`.
      units: see `reset_by_rule`.
      replacement_rate: :math:`\rho`, in [0, 1]. 0 is the base optimizer, bit for bit if
        it is not traced. The paper uses 0.01 on permuted MNIST.
      sharpness: :math:`k`, at least 0; 0 resets all units alike.
      decay_rate: :math:`d`, in [0, 1).
      reset_every: F, number of updates between resets. The paper uses 100 on permuted
        MNIST.
      is_check: whether this update resets units; see `redo`.
      gradient: see `regrama`.
      moments: "reset" moves the moments toward their initial values, too; see `Choice`.
      biases: "reset" moves biases, normalization parameters and slopes, too.
      axis_name: see `continual_backprop`; only gradients of activations use it.
      key: see `reset_by_rule`.
      **options: `initializer`, `keep_state` and `between_reset` of `reset_by_rule`.

    Returns:
      As `reset_by_rule`; `state.units` has a `CPRState` for each group.

    Raises:
      ValueError: a number is out of range, `gradient` is unknown, or as in
        `reset_by_rule`.

    References:
      McCutcheon et al., `Calibrated partial resets: preventing policy collapse in
      continual reinforcement learning <https://arxiv.org/abs/2607.24996>`_, 2026. Where
      the paper averages gradient magnitudes over examples, this takes the magnitude of
      the gradient that the update receives, usually an average; the two agree for
      batches of one. The default of the authors' code is another calibration,
      :math:`\min(1, e^{-k (u_i - 0.95)})` with :math:`\rho` 0.012.
    """
    check_range("replacement_rate", replacement_rate, 0, 1)
    check_range("sharpness", sharpness, 0, math.inf, open_end=True)
    check_range("decay_rate", decay_rate, 0, 1, open_end=True)
    check_range("reset_every", reset_every, 1, math.inf)
    magnitude_of, needs = magnitudes(gradient, axis_name)
    is_off = is_known_zero(replacement_rate)

    def init(num_units: int, dtype: DTypeLike) -> CPRState:
        return CPRState(
            age=jnp.zeros(num_units, jnp.int32),
            score=jnp.ones(num_units, dtype),
            fraction=jnp.zeros(num_units, dtype),
        )

    def update(state: CPRState, measurements: Measurements) -> tuple[CPRState, Choice]:
        dtype = state.score.dtype
        score = relative_to_layer(magnitude_of(measurements), EPSILON)
        average = running_average(state.score, score, decay_rate)
        steepness = jnp.asarray(sharpness, dtype)
        calibrated = jnp.minimum(1, 2 * jax.nn.sigmoid(-steepness * (average - 1)))
        due = is_due(measurements, reset_every, is_check)
        fraction = jnp.asarray(replacement_rate, dtype) * calibrated
        fraction = jnp.where(due, fraction, 0)
        state = state._replace(score=jnp.where(due, 1, average), fraction=fraction)
        number = jnp.where(due, average.size, 0).astype(jnp.int32)
        return state, Choice(jnp.zeros_like(average), number, fraction=fraction)

    return reset_by_rule(
        base_optimizer,
        freeze(units, is_off or is_check is False),
        Rule(init, update, needs=needs),
        key=key,
        moments=moments,
        biases=biases,
        **options,
    )

"""Self-normalized resets: resets units that are silent for unusually long.

Shapes: B batch, P positions, N units, K bins of a histogram.
"""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
import optax

from cbp_jax._numbers import check_range, is_known, over_replicas
from cbp_jax._resets import Choice, Measurements, Rule, choose_where, reset_by_rule
from cbp_jax._types import AxisName
from cbp_jax._units import UnitGroup, freeze
from cbp_jax._xla import cond_any_lane

# Each bin of silences is a quarter of an octave wide: 1 to 7 updates have their own
# bins; a longer silence shares one with silences up to 19 % longer.
_BINS_PER_OCTAVE = 4
_NUM_BINS = 20 * _BINS_PER_OCTAVE


class SelfNormalizedState(NamedTuple):
    """State of self-normalized resets for the units of one group."""

    age: jax.Array  # int32 [N], optimizer updates since the last reset.
    silence: jax.Array  # int32 [N], updates since the unit last fired.
    histogram: jax.Array  # int32 [N, K], past silences, by length.
    longest: jax.Array  # int32 [N], longest usual silence of the unit.


def self_normalized_resets(
    base_optimizer: optax.GradientTransformation,
    units: Sequence[UnitGroup],
    *,
    rejection_rate: float | jax.Array = 0.02,
    first_threshold: int | jax.Array = 1000,
    lowest_threshold: int | jax.Array = 100,
    refresh_every: int = 100,
    axis_name: AxisName | None = None,
    key: jax.Array,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Base optimizer, followed by resets of units that are silent for unusually long.

    A unit fires in an update if its activation is positive for any example of the
    batch, at any position. Each unit has a distribution of its own silences, the runs
    of one or more updates without firing. It is reset when its current silence exceeds
    the :math:`1 - \eta` percentile of this distribution. A weight from one reset unit
    to another is redrawn, as in the authors' code, which resets one layer after
    another.

    Example::

      tx = cbp_jax.self_normalized_resets(optax.adam(1e-3), units, key=key)
      updates, state = tx.update(grads, state, params, features=features)

    Args:
      base_optimizer: see `reset_by_rule`.
      units: see `reset_by_rule`.
      rejection_rate: :math:`\eta`, in [0, 1). 0 resets no unit and is the base
        optimizer, bit for bit if it is not traced.
      first_threshold: silence, in updates, allowed to a unit with fewer than
        :math:`1 / \eta` past silences since its reset, too few for the percentile.
      lowest_threshold: silence, in updates, that is always allowed. The authors' code
        uses one batch of 100 examples; a stream of single examples needs more than 1.
      refresh_every: number of updates between computations of the percentiles. Static.
      axis_name: see `continual_backprop`.
      key: see `reset_by_rule`.
      **options: `initializer`, `moments`, `keep_state` and `between_reset` of
        `reset_by_rule`.

    Returns:
      As `reset_by_rule`; `state.units` has a `SelfNormalizedState` for each group.

    Raises:
      ValueError: an argument is out of range, or as in `reset_by_rule`.

    References:
      Farias and Jozefiak, `Self-normalized resets for plasticity in continual learning
      <https://arxiv.org/abs/2410.20098>`_, 2025, Algorithm 1. Their code has one bin
      per length, and empties the histogram whenever it computes percentiles. Here,
      lengths above 7 share bins, so a percentile may be up to 19 % too long, and a
      histogram is kept until its unit is reset.
    """
    check_range("rejection_rate", rejection_rate, 0, 1, open_end=True)
    check_range("refresh_every", refresh_every, 1, math.inf)
    is_off = is_known(rejection_rate, lambda rate: rate == 0)

    def init(num_units: int, dtype: DTypeLike) -> SelfNormalizedState:
        del dtype
        return SelfNormalizedState(
            age=jnp.zeros(num_units, jnp.int32),
            silence=jnp.zeros(num_units, jnp.int32),
            histogram=jnp.zeros((num_units, _NUM_BINS), jnp.int32),
            longest=jnp.full(num_units, first_threshold, jnp.int32),
        )

    def update(
        state: SelfNormalizedState, measurements: Measurements
    ) -> tuple[SelfNormalizedState, Choice]:
        fires = jnp.any(measurements.activation > 0, axis=(0, 1))
        fires = over_replicas(fires.astype(jnp.int32), axis_name, lax.pmax) > 0
        ended = jnp.where(fires, state.silence, 0)
        histogram = state.histogram.at[jnp.arange(ended.size), _bin_of(ended)].add(
            (ended > 0).astype(jnp.int32)
        )
        is_due = (measurements.count + 1) % refresh_every == 0
        rates = jnp.asarray(rejection_rate, jnp.float32)
        longest = cond_any_lane(
            is_due,
            _percentiles,
            lambda operand: operand[1],
            (histogram, state.longest, is_due, rates, _integer(first_threshold)),
            # Histograms are so small that a GPU is done before it could ask.
            always_on_gpu=True,
        )
        silence = jnp.where(fires, 0, state.silence + 1)
        state = SelfNormalizedState(
            age=state.age,
            silence=silence,
            histogram=histogram,
            longest=longest,
        )
        too_long = silence > jnp.maximum(longest, _integer(lowest_threshold))
        return state, choose_where(too_long & (rates > 0))

    return reset_by_rule(
        base_optimizer,
        freeze(units, is_off),
        Rule(init, update),
        key=key,
        **options,
    )


def _percentiles(operand: tuple[jax.Array, ...]) -> jax.Array:
    """Computes the 1 - rate percentile of each unit's silences, int32 [N], if due."""
    histogram, longest, is_due, rate, first = operand
    shares = jnp.cumsum(histogram, axis=1).astype(jnp.float32)
    total = shares[:, -1]
    found = _last_of_bin(jnp.argmax(shares >= ((1 - rate) * total)[:, None], axis=1))
    is_known = total * rate >= 1
    return jnp.where(is_due, jnp.where(is_known, found, first), longest)


def _bin_of(silence: jax.Array) -> jax.Array:
    """Maps lengths (int32) to bins (int32); 0 maps to the bin of 1."""
    octaves = jnp.log2(jnp.maximum(silence, 1).astype(jnp.float32))
    # Rounding must not put the first length of a bin into the bin below.
    index = jnp.floor(_BINS_PER_OCTAVE * octaves + 1e-5).astype(jnp.int32)
    return jnp.minimum(index, _NUM_BINS - 1)


def _last_of_bin(index: jax.Array) -> jax.Array:
    """Returns the longest silence of a bin."""
    first_of_next = jnp.exp2((index + 1).astype(jnp.float32) / _BINS_PER_OCTAVE)
    return jnp.ceil(first_of_next * (1 - 1e-6)).astype(jnp.int32) - 1


def _integer(value: ArrayLike) -> jax.Array:
    return jnp.asarray(value, jnp.int32)

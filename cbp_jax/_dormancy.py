"""Units that do little for their layer, checked every so many updates.

Shapes: N units.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cbp_jax._resets import Choice, Measurements, Rule, choose_where
from cbp_jax._types import PyTree


def relative_to_layer(magnitude: jax.Array, epsilon: float) -> jax.Array:
    """Returns magnitudes [N] in multiples of their mean; 0 if all are 0."""
    return magnitude / (jnp.mean(magnitude) + epsilon)


def is_due(
    measurements: Measurements,
    reset_every: int | jax.Array,
    is_check: bool | None,
) -> bool | jax.Array:
    """Returns whether this update is a check; see `cbp_jax.redo`."""
    if is_check is not None:
        return is_check
    interval = jnp.asarray(reset_every).astype(jnp.int32)
    return (measurements.count + 1) % interval == 0


def dormancy_rule(
    make_state: Callable[..., PyTree],
    magnitude_of: Callable[[Measurements], jax.Array],
    *,
    threshold: float | jax.Array,
    epsilon: float,
    reset_every: int | jax.Array,
    is_check: bool | None,
    over_interval: bool,
    needs: Sequence[str] = (),
) -> Rule:
    """Makes the rule that resets all units of at most a threshold, at every check.

    Args:
      make_state: a NamedTuple with the fields `age`, int32 [N], and `total` [N], the
        sum of the magnitudes since the last check.
      magnitude_of: a function of the measurements of a group, which returns what is
        compared [N], at least 0.
      threshold: in multiples of the mean of the layer.
      epsilon: what is added to that mean.
      reset_every: number of updates between checks.
      is_check: see `cbp_jax.redo`.
      over_interval: compare sums over all updates since the last check. False compares
        the magnitudes of this update alone.
      needs: the gradients that `magnitude_of` reads; see `Rule`.
    """

    def init(num_units: int, dtype: DTypeLike) -> PyTree:
        return make_state(
            age=jnp.zeros(num_units, jnp.int32), total=jnp.zeros(num_units, dtype)
        )

    def update(state: PyTree, measurements: Measurements) -> tuple[PyTree, Choice]:
        magnitude = magnitude_of(measurements)
        due = is_due(measurements, reset_every, is_check)
        # With a single update, there is no sum to keep.
        total = state.total + magnitude if over_interval else magnitude
        # The number of updates in the sum cancels, except in the epsilon.
        interval = jnp.asarray(reset_every).astype(jnp.int32)
        mean = total / interval.astype(total.dtype) if over_interval else total
        starts_over = due | (not over_interval)
        state = state._replace(total=jnp.where(starts_over, 0, total))
        is_dormant = relative_to_layer(mean, epsilon) <= threshold
        return state, choose_where(due & is_dormant)

    return Rule(init, update, needs=needs)

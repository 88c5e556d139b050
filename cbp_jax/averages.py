"""Running averages of unit statistics.

Shapes: N units.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def over_replicas(value: jax.Array, axis_name: Any, reduce: Any = lax.pmean) -> Any:
    """Reduces a statistic of a batch over the axis that the batch is split over.

    Args:
      value: what this replica's part of the batch gives, any shape.
      axis_name: name or names of axes of `jax.shard_map` or `jax.pmap`, None for none.
      reduce: `lax.pmean`, or `lax.pmax` for what holds if it does anywhere.
    """
    return value if axis_name is None else reduce(value, axis_name)


def running_average(average: jax.Array, value: jax.Array, decay_rate: Any) -> jax.Array:
    """Averages in a new value [N]; where it is not finite the average stays."""
    decay_rate = jnp.asarray(decay_rate, average.dtype)
    new = decay_rate * average + (1 - decay_rate) * value
    return jnp.where(jnp.isfinite(value), new, average)


def average_weight(age: jax.Array, decay_rate: Any, dtype: Any) -> jax.Array:
    """Returns 1 - decay**age, the weight of a running average that began at 0.

    Args:
      age: steps averaged, integer array of any shape, at least 1.
      decay_rate: in [0, 1).
      dtype: floating dtype of the result.
    """
    # The logarithm of 0 would be infinite, which `jax_debug_infs` takes for a fault.
    positive = jnp.maximum(jnp.asarray(decay_rate, dtype), jnp.finfo(dtype).tiny)
    log_decay = jnp.log(positive)
    return -jnp.expm1(age.astype(dtype) * log_decay)


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype for statistics of params of a floating dtype."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32

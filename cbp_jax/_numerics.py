"""Floating dtypes, running averages of unit statistics, and keys as arrays of a state.

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
    log_decay = jnp.log(jnp.asarray(decay_rate, dtype))
    return -jnp.expm1(age.astype(dtype) * log_decay)


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype for statistics of params of a floating dtype."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def key_bits(key: jax.Array | None) -> jax.Array | None:
    """Returns the bits of a typed key, uint32 [...]; None for None.

    A copy, because the caller's key must survive a state whose memory is reused.
    """
    return None if key is None else jnp.copy(jax.random.key_data(key))


def key_of(bits: jax.Array | None, like: jax.Array | None) -> jax.Array | None:
    """Returns the typed key of some bits, of the same generator as another key."""
    if bits is None:
        return None
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like))


def as_float(array: jax.Array) -> jax.Array:
    """Converts an array to the type that it is measured in."""
    return jnp.asarray(array, float_dtype(array))


def float_dtype(*arrays: Any) -> jnp.dtype:
    """Widest of float32 and the arrays' own types, whatever the promotion rules."""
    is_double = any(jnp.result_type(array) == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)

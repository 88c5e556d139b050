"""The floating-point type that a measure runs in."""

from typing import Any

import jax
import jax.numpy as jnp


def as_float(array: jax.Array) -> jax.Array:
    """Converts an array to the type that it is measured in."""
    return jnp.asarray(array, float_dtype(array))


def float_dtype(*arrays: Any) -> jnp.dtype:
    """Widest of float32 and the arrays' own types, whatever the promotion rules."""
    is_double = any(jnp.result_type(array) == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)

"""Sums of terms of which there may be none."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def add_up(terms: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of scalars, 0 for none."""
    return jnp.sum(jnp.stack(terms)) if terms else jnp.zeros((), jnp.float32)

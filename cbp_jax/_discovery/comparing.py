"""Compares outputs up to rounding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def difference(outputs: Sequence[jax.Array], wanted: Sequence[jax.Array]) -> float:
    """Returns the largest difference relative to the largest output, 0 for rounding."""
    worst = 0.0
    for one, other in zip(outputs, wanted, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        largest = np.max(np.abs(other), initial=0) or 1.0
        worst = max(worst, float(np.max(np.abs(one - other), initial=0) / largest))
    epsilon = max(float(jnp.finfo(each.dtype).eps) for each in wanted)
    return worst if not worst <= np.sqrt(epsilon) else 0.0


def close(some: Sequence[jax.Array], wanted: Sequence[jax.Array]) -> bool:
    """Whether arrays have the same shapes and values, up to rounding."""
    shapes = [jnp.shape(each) for each in wanted]
    return shapes == [jnp.shape(each) for each in some] and not difference(some, wanted)

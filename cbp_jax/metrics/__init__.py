"""Measures of how much of a network is still in use.

Shapes: M samples, N units, R = min(M, N) singular values. Every function is pure and
works under `jax.jit` (with `method` static) and `jax.vmap`.

Unless stated otherwise, a result is a scalar: float64 if an input is float64, float32
otherwise (integer, Boolean and half-precision inputs are converted first). Ranks are
whole numbers in that dtype, so that NaN can signal a diverged network: a NaN anywhere
in the input makes the result NaN.

Dohare et al. (2024) is Loss of plasticity in deep continual learning, Nature.
"""

from cbp_jax.metrics._activity import (
    dead_units,
    dormant_units,
    saturated_units,
    tau_dormant_units,
)
from cbp_jax.metrics._ranks import (
    METHODS,
    approximate_rank,
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from cbp_jax.metrics._weights import weight_magnitude

__all__ = [
    "METHODS",
    "approximate_rank",
    "dead_units",
    "dormant_units",
    "effective_rank",
    "numerical_rank",
    "saturated_units",
    "singular_values",
    "stable_rank",
    "tau_dormant_units",
    "weight_magnitude",
]

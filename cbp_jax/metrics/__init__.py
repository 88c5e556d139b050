"""Measures of how much of a network is still in use, one formula each.

Legend for shapes: M samples, N units, R = min(M, N) singular values. Every function is
pure and works under `jax.jit` (with `method` static) and `jax.vmap`.

Every result is a scalar of the floating-point type the computation ran in: float64
where an input is float64, float32 otherwise (integer, Boolean and half-precision
inputs are converted first). Ranks are whole numbers in that type, so that NaN can stand
for a diverged network: a NaN anywhere in the input makes the result NaN.

Dohare et al. (2024) stands for Loss of plasticity in deep continual learning, Nature.
"""

from cbp_jax.metrics.activity import dead_units as dead_units
from cbp_jax.metrics.activity import dormant_units as dormant_units
from cbp_jax.metrics.activity import saturated_units as saturated_units
from cbp_jax.metrics.activity import tau_dormant_units as tau_dormant_units
from cbp_jax.metrics.decompositions import METHODS as METHODS
from cbp_jax.metrics.ranks import approximate_rank as approximate_rank
from cbp_jax.metrics.ranks import effective_rank as effective_rank
from cbp_jax.metrics.ranks import numerical_rank as numerical_rank
from cbp_jax.metrics.ranks import singular_values as singular_values
from cbp_jax.metrics.ranks import stable_rank as stable_rank
from cbp_jax.metrics.weights import weight_magnitude as weight_magnitude

"""Measures of plasticity, and of how much of a network is still in use.

* Directly: `aged_against_fresh`, `update_plasticity`, `readiness`; from accuracies,
  `task_plasticity` and `forgetting`.
* Units of a layer: `dead_units`, `dormant_units`, `tau_dormant_units`,
  `gradient_dormant_units`, `saturated_units`, `always_on_units`, `duplicate_units`.
* Ranks of features: `effective_rank`, `stable_rank`, `srank`, `approximate_rank`,
  `numerical_rank`, `rankme`, `participation_ratio`.
* Weights: `weight_magnitude`, `spectral_norm`, `condition_number`, `isometry_gap`,
  `distance_from_initialization`.
* Curvature, kernel and outputs: `hessian_rank`, `hessian_eigenvalues`, `sharpness`,
  `tangent_kernel`, `churn`.
* All layers of your network in one table: `report`.

Shapes: M samples, N units, R = min(M, N) singular values. Every function but `report`
is pure and works under `jax.jit` (with functions, `method` and numbers of steps static)
and `jax.vmap`.

Unless stated otherwise, a result is a scalar: float64 if an input is float64, float32
otherwise (integer, Boolean and half-precision inputs are converted first). Ranks are
whole numbers in that dtype, so that NaN can signal a diverged network: a NaN anywhere
in the input makes the result NaN.

Dohare et al. (2024) is Loss of plasticity in deep continual learning, Nature.
"""

from cbp_jax.metrics._accuracies import (
    Forgetting,
    TaskPlasticity,
    forgetting,
    task_plasticity,
)
from cbp_jax.metrics._activity import (
    always_on_units,
    dead_units,
    dormant_units,
    duplicate_units,
    gradient_dormant_units,
    saturated_units,
    tau_dormant_units,
)
from cbp_jax.metrics._churn import (
    Churn,
    churn,
)
from cbp_jax.metrics._curvature import (
    hessian_eigenvalues,
    hessian_rank,
    sharpness,
)
from cbp_jax.metrics._probe import (
    AgedAgainstFresh,
    aged_against_fresh,
)
from cbp_jax.metrics._ranks import (
    METHODS,
    approximate_rank,
    effective_rank,
    numerical_rank,
    participation_ratio,
    rankme,
    singular_values,
    srank,
    stable_rank,
)
from cbp_jax.metrics._readiness import (
    Readiness,
    readiness,
)
from cbp_jax.metrics._report import (
    LayerReport,
    Report,
    report,
)
from cbp_jax.metrics._tangent_kernel import (
    tangent_kernel,
)
from cbp_jax.metrics._update_plasticity import (
    update_plasticity,
)
from cbp_jax.metrics._weights import (
    condition_number,
    distance_from_initialization,
    isometry_gap,
    spectral_norm,
    weight_magnitude,
)

__all__ = [
    "AgedAgainstFresh",
    "Churn",
    "Forgetting",
    "LayerReport",
    "METHODS",
    "Readiness",
    "Report",
    "TaskPlasticity",
    "aged_against_fresh",
    "always_on_units",
    "approximate_rank",
    "churn",
    "condition_number",
    "dead_units",
    "distance_from_initialization",
    "dormant_units",
    "duplicate_units",
    "effective_rank",
    "forgetting",
    "gradient_dormant_units",
    "hessian_eigenvalues",
    "hessian_rank",
    "isometry_gap",
    "numerical_rank",
    "participation_ratio",
    "rankme",
    "readiness",
    "report",
    "saturated_units",
    "sharpness",
    "singular_values",
    "spectral_norm",
    "srank",
    "stable_rank",
    "tangent_kernel",
    "task_plasticity",
    "tau_dormant_units",
    "update_plasticity",
    "weight_magnitude",
]

"""Optimizers and alternatives to continual backprop, as optax transformations."""

from cbp_jax.optimizers._ada_upgd import (
    AdaUPGDState,
    ada_upgd,
)
from cbp_jax.optimizers._adam_with_unit_counts import (
    AdamWithUnitCountsState,
    adam_with_unit_counts,
    adamw_with_unit_counts,
    scale_by_adam_with_unit_counts,
)
from cbp_jax.optimizers._adamo import (
    adamo,
    isometry,
)
from cbp_jax.optimizers._dash import (
    DashState,
    dash,
)
from cbp_jax.optimizers._events import (
    EventState,
    Schedule,
    act_at,
    at,
    every,
)
from cbp_jax.optimizers._fire import (
    fire,
)
from cbp_jax.optimizers._hare_and_tortoise import (
    HareAndTortoiseState,
    hare_and_tortoise,
    slow_params,
)
from cbp_jax.optimizers._l1_init import (
    L1InitState,
    l1_init,
)
from cbp_jax.optimizers._l2_init import (
    L2InitState,
    l2_init,
)
from cbp_jax.optimizers._norm_projection import (
    ProjectNormsState,
    project_norms,
)
from cbp_jax.optimizers._parseval import (
    parseval,
)
from cbp_jax.optimizers._pgd import (
    pgd,
)
from cbp_jax.optimizers._resets_at_events import (
    ResetOptimizerState,
    reset_adam_count_at,
    reset_optimizer_at,
    reset_params_at,
)
from cbp_jax.optimizers._selective_weight_reinitialization import (
    selective_weight_reinitialization,
)
from cbp_jax.optimizers._shrink_and_perturb import (
    NOISES,
    PerturbState,
    perturb,
    random_signs,
    shrink_and_perturb,
)
from cbp_jax.optimizers._shrink_and_perturb_at_events import (
    shrink_and_perturb_at_events,
)
from cbp_jax.optimizers._spectral_regularization import (
    SpectralRegularizationState,
    spectral_regularization,
)
from cbp_jax.optimizers._upgd import (
    UPGDState,
    upgd,
)
from cbp_jax.optimizers._wasserstein_init import (
    WassersteinInitState,
    wasserstein_init,
)
from cbp_jax.optimizers._weight_clipping import (
    Bounds,
    clip_weights,
    uniform_fan_in_bound,
)

__all__ = [
    "AdaUPGDState",
    "AdamWithUnitCountsState",
    "Bounds",
    "DashState",
    "EventState",
    "HareAndTortoiseState",
    "L1InitState",
    "L2InitState",
    "NOISES",
    "PerturbState",
    "ProjectNormsState",
    "ResetOptimizerState",
    "Schedule",
    "SpectralRegularizationState",
    "UPGDState",
    "WassersteinInitState",
    "act_at",
    "ada_upgd",
    "adam_with_unit_counts",
    "adamo",
    "adamw_with_unit_counts",
    "at",
    "clip_weights",
    "dash",
    "every",
    "fire",
    "hare_and_tortoise",
    "isometry",
    "l1_init",
    "l2_init",
    "parseval",
    "perturb",
    "pgd",
    "project_norms",
    "random_signs",
    "reset_adam_count_at",
    "reset_optimizer_at",
    "reset_params_at",
    "scale_by_adam_with_unit_counts",
    "selective_weight_reinitialization",
    "shrink_and_perturb",
    "shrink_and_perturb_at_events",
    "slow_params",
    "spectral_regularization",
    "uniform_fan_in_bound",
    "upgd",
    "wasserstein_init",
]

"""Optimizers, and rivals of continual backprop that are optax transformations."""

from cbp_jax.optimizers.adam_with_unit_counts import (
    AdamWithUnitCountsState as AdamWithUnitCountsState,
)
from cbp_jax.optimizers.adam_with_unit_counts import (
    adam_with_unit_counts as adam_with_unit_counts,
)
from cbp_jax.optimizers.adam_with_unit_counts import (
    scale_by_adam_with_unit_counts as scale_by_adam_with_unit_counts,
)
from cbp_jax.optimizers.adamw_with_unit_counts import (
    adamw_with_unit_counts as adamw_with_unit_counts,
)
from cbp_jax.optimizers.events import EventState as EventState
from cbp_jax.optimizers.events import Schedule as Schedule
from cbp_jax.optimizers.events import act_at as act_at
from cbp_jax.optimizers.events import at as at
from cbp_jax.optimizers.events import every as every
from cbp_jax.optimizers.fire import fire as fire
from cbp_jax.optimizers.hare_and_tortoise import (
    HareAndTortoiseState as HareAndTortoiseState,
)
from cbp_jax.optimizers.hare_and_tortoise import hare_and_tortoise as hare_and_tortoise
from cbp_jax.optimizers.hare_and_tortoise import slow_params as slow_params
from cbp_jax.optimizers.l2_init import L2InitState as L2InitState
from cbp_jax.optimizers.l2_init import l2_init as l2_init
from cbp_jax.optimizers.norm_projection import ProjectNormsState as ProjectNormsState
from cbp_jax.optimizers.norm_projection import project_norms as project_norms
from cbp_jax.optimizers.resets_at_events import (
    ResetOptimizerState as ResetOptimizerState,
)
from cbp_jax.optimizers.resets_at_events import reset_optimizer_at as reset_optimizer_at
from cbp_jax.optimizers.resets_at_events import reset_params_at as reset_params_at
from cbp_jax.optimizers.selective_weight_reinitialization import (
    selective_weight_reinitialization as selective_weight_reinitialization,
)
from cbp_jax.optimizers.shrink_and_perturb import NOISES as NOISES
from cbp_jax.optimizers.shrink_and_perturb import PerturbState as PerturbState
from cbp_jax.optimizers.shrink_and_perturb import perturb as perturb
from cbp_jax.optimizers.shrink_and_perturb import random_signs as random_signs
from cbp_jax.optimizers.shrink_and_perturb import (
    shrink_and_perturb as shrink_and_perturb,
)
from cbp_jax.optimizers.shrink_and_perturb_at_events import (
    shrink_and_perturb_at_events as shrink_and_perturb_at_events,
)
from cbp_jax.optimizers.spectral_regularization import (
    SpectralRegularizationState as SpectralRegularizationState,
)
from cbp_jax.optimizers.spectral_regularization import (
    spectral_regularization as spectral_regularization,
)
from cbp_jax.optimizers.upgd import UPGDState as UPGDState
from cbp_jax.optimizers.upgd import upgd as upgd
from cbp_jax.optimizers.weight_clipping import Bounds as Bounds
from cbp_jax.optimizers.weight_clipping import clip_weights as clip_weights
from cbp_jax.optimizers.weight_clipping import (
    uniform_fan_in_bound as uniform_fan_in_bound,
)

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
from cbp_jax.optimizers.shrink_and_perturb import PerturbState as PerturbState
from cbp_jax.optimizers.shrink_and_perturb import perturb as perturb
from cbp_jax.optimizers.shrink_and_perturb import (
    shrink_and_perturb as shrink_and_perturb,
)

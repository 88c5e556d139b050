"""Continual backprop in JAX."""

from importlib import metadata as _metadata

from cbp_jax import initializers as initializers
from cbp_jax import layers as layers
from cbp_jax import metrics as metrics
from cbp_jax import networks as networks
from cbp_jax import optimizers as optimizers
from cbp_jax import recipes as recipes
from cbp_jax import training as training
from cbp_jax import utility as utility
from cbp_jax.discovery.checking import check_units as check_units
from cbp_jax.discovery.collecting import collect_features as collect_features
from cbp_jax.discovery.features import with_features as with_features
from cbp_jax.discovery.inference import InferredUnits as InferredUnits
from cbp_jax.discovery.inference import infer_units as infer_units
from cbp_jax.resets.rewriting import reset_units as reset_units
from cbp_jax.resets.rule import Choice as Choice
from cbp_jax.resets.rule import Measurements as Measurements
from cbp_jax.resets.rule import Rule as Rule
from cbp_jax.resets.rule import choose_where as choose_where
from cbp_jax.resets.statistics import reset_statistics as reset_statistics
from cbp_jax.resets.transform import UnitResetState as UnitResetState
from cbp_jax.resets.transform import reset_by_rule as reset_by_rule
from cbp_jax.resets.units import UnitGroup as UnitGroup
from cbp_jax.resets.units import sequential_units as sequential_units
from cbp_jax.rules.continual_backprop import (
    ContinualBackpropState as ContinualBackpropState,
)
from cbp_jax.rules.continual_backprop import continual_backprop as continual_backprop
from cbp_jax.rules.continual_backprop import replace_units as replace_units
from cbp_jax.rules.low_utility import UnitState as UnitState
from cbp_jax.rules.redo import redo as redo
from cbp_jax.rules.self_normalized_resets import (
    self_normalized_resets as self_normalized_resets,
)

__version__ = _metadata.version("cbp_jax")

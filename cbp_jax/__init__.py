"""Continual backprop in JAX."""

from importlib import metadata as _metadata

from cbp_jax import initializers as initializers
from cbp_jax import layers as layers
from cbp_jax import metrics as metrics
from cbp_jax import networks as networks
from cbp_jax import optimizers as optimizers
from cbp_jax import recipes as recipes
from cbp_jax import utility as utility
from cbp_jax.continual_backprop import ContinualBackpropState as ContinualBackpropState
from cbp_jax.continual_backprop import continual_backprop as continual_backprop
from cbp_jax.continual_backprop import replace_units as replace_units
from cbp_jax.rewriting import reset_units as reset_units
from cbp_jax.unit_state import UnitState as UnitState
from cbp_jax.units import UnitGroup as UnitGroup
from cbp_jax.units import sequential_units as sequential_units

__version__ = _metadata.version("cbp_jax")

"""Continual backprop in JAX."""

from importlib import metadata as _metadata
import warnings as _warnings

from cbp_jax import (
    initializers,
    layers,
    losses,
    metrics,
    networks,
    optimizers,
    training,
    utility,
    variants,
)
from cbp_jax._continual_backprop import (
    ContinualBackpropState,
    UnitState,
    continual_backprop,
    replace_units,
)
from cbp_jax._cpr import cpr
from cbp_jax._discovery.checking import check_units
from cbp_jax._discovery.features import collect_features, with_features
from cbp_jax._discovery.inference import InferredUnits, infer_units
from cbp_jax._redo import redo
from cbp_jax._regrama import regrama
from cbp_jax._resets import (
    Choice,
    Measurements,
    Rule,
    UnitResetState,
    choose_where,
    reset_by_rule,
)
from cbp_jax._self_normalized_resets import self_normalized_resets
from cbp_jax._trees import reset_statistics, reset_units
from cbp_jax._units import UnitGroup, sequential_units

__all__ = [
    "Choice",
    "ContinualBackpropState",
    "InferredUnits",
    "Measurements",
    "Rule",
    "UnitGroup",
    "UnitResetState",
    "UnitState",
    "check_units",
    "choose_where",
    "collect_features",
    "continual_backprop",
    "cpr",
    "infer_units",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "networks",
    "optimizers",
    "redo",
    "regrama",
    "replace_units",
    "reset_by_rule",
    "reset_statistics",
    "reset_units",
    "self_normalized_resets",
    "sequential_units",
    "training",
    "utility",
    "variants",
    "with_features",
]

__version__ = _metadata.version("cbp_jax")


def __getattr__(name: str) -> object:
    """Looks up a renamed module, and warns."""
    if name == "recipes":
        _warnings.warn(
            "cbp_jax.recipes is now cbp_jax.variants.", DeprecationWarning, stacklevel=2
        )
        return variants
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

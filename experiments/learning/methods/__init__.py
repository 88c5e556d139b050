"""The methods that a case can name: one entry each, in the file of its kind.

An entry has the method's hyperparameters, with published values, ranges and off
values, and a function that puts it around, before or behind the optimizer. Configs,
sweeps, lanes and checks all read them here. L2, online shrink and perturb, dropout and
Adam are fields of the optimizer, normalizations and activations of the network: each
goes with every method.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from experiments.learning.hyperparameters import (
    OPTIMIZER_HYPERPARAMETERS,
    Hyperparameter,
    optimizer_hyperparameters,
)
from experiments.learning.methods.events import EVENTS
from experiments.learning.methods.method import Ingredients as Ingredients
from experiments.learning.methods.method import Method as Method
from experiments.learning.methods.regularizers import REGULARIZERS
from experiments.learning.methods.unit_resets import UNIT_RESETS
from experiments.learning.networks import NORMALIZATION_HYPERPARAMETERS

METHODS: Mapping[str, Method] = MappingProxyType(
    dict(REGULARIZERS) | UNIT_RESETS | EVENTS
)
"""All methods by the name that `config.method` takes."""

HYPERPARAMETERS: Mapping[str, Hyperparameter] = MappingProxyType(
    {
        name: parameter
        for parameters in (
            OPTIMIZER_HYPERPARAMETERS,
            *NORMALIZATION_HYPERPARAMETERS.values(),
            *(method.hyperparameters for method in METHODS.values()),
        )
        for name, parameter in parameters.items()
    }
)
"""All config fields that lanes of one program may differ in."""


def hyperparameters_of(fields: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a case takes.

    Args:
      fields: of its config, `method`, `optimizer` and `normalization` among them.
        Unknown names have none; the learner's checks name them.
    """
    method = METHODS.get(fields["method"])
    replaces_optimizer = method is not None and method.replaces_optimizer
    found = optimizer_hyperparameters(
        None if replaces_optimizer else fields["optimizer"]
    )
    found |= NORMALIZATION_HYPERPARAMETERS.get(fields["normalization"], {})
    if method is not None:
        found |= method.hyperparameters
    return found

"""The optimizers that a config can name, which work with every method.

Each is one declaration, `optimizer`: its hyperparameters and the function that builds
it. Methods that reset units reset what it keeps for them; docs/guide.md says what that
is for each.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import optax

from cbp_jax import UnitGroup, optimizers
from experiments.learning.hyperparameters import (
    DECAY,
    FINITE,
    Hyperparameter,
    Hyperparameters,
    declare_hyperparameters,
    default_of,
    is_off,
)

Build = Callable[[SimpleNamespace, Sequence[UnitGroup]], optax.GradientTransformation]


class Optimizer(NamedTuple):
    """An optimizer and its hyperparameters."""

    build: Build  # From the learner's hyperparameters and its network's unit groups.
    hyperparameters: Hyperparameters  # By config field, without the step size.


_OPTIMIZERS: dict[str, Optimizer] = {}
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(_OPTIMIZERS)
"""All optimizers, by their name in `config.optimizer`."""


def optimizer(name: str, **hyperparameters: Hyperparameter) -> Callable[[Build], Build]:
    """Declares an optimizer, which the decorated function builds.

    Args:
      name: its name in `config.optimizer`.
      **hyperparameters: its hyperparameters by config field, in addition to
        `step_size`. Optimizers may share one if they declare it equally.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      ValueError: an optimizer of this name exists, or see `declare_hyperparameters`.
    """

    def enter(build: Build) -> Build:
        if name in _OPTIMIZERS:
            raise ValueError(
                f"An optimizer {name!r} already exists; choose another name."
            )
        declare_hyperparameters(hyperparameters)
        _OPTIMIZERS[name] = Optimizer(build, MappingProxyType(hyperparameters))
        return build

    return enter


_FOR_ALL = {
    "step_size": Hyperparameter(0.01, FINITE, None, "step size", search=(1e-4, 0.1)),
    "weight_decay": Hyperparameter(
        *(0.0, FINITE, 0.0, "L2 on all parameters, added to the gradient"),
        search=(1e-6, 1e-1),
    ),
    "noise_scale": Hyperparameter(
        *(0.0, FINITE, 0.0),
        "standard deviation of noise on all parameters per update",
        search=(1e-7, 1e-3),
    ),
    "dropout_rate": Hyperparameter(
        *(0.0, DECAY, 0.0, "fraction of hidden activations dropped"),
        search=(1e-3, 0.3),
    ),
}
_OF_ANY_UPDATE = ("step_size", "dropout_rate")
declare_hyperparameters(_FOR_ALL)


@optimizer("sgd", momentum=Hyperparameter(0.0, DECAY, 0.0, "momentum of SGD"))
def _sgd(numbers: Any, units: Sequence[UnitGroup]) -> optax.GradientTransformation:
    del units
    momentum = None if is_off(numbers.momentum) else numbers.momentum
    return optax.sgd(numbers.step_size, momentum=momentum)


_BETAS = {
    "b1": Hyperparameter(
        default_of(optax.adam, "b1"), DECAY, None, "decay of Adam's first moments"
    ),
    "b2": Hyperparameter(
        default_of(optax.adam, "b2"), DECAY, None, "decay of Adam's second moments"
    ),
}


@optimizer("adam", **_BETAS)
def _adam(numbers: Any, units: Sequence[UnitGroup]) -> optax.GradientTransformation:
    betas = {"b1": numbers.b1, "b2": numbers.b2}
    if not units:
        return optax.adam(numbers.step_size, **betas)
    return optimizers.adam_with_unit_counts(numbers.step_size, units, **betas)


@optimizer(
    "adamw",
    **_BETAS,
    decoupled_decay=Hyperparameter(
        default_of(optax.adamw, "weight_decay"),
        *(FINITE, None, "AdamW's decay of all parameters, times the step size"),
        search=(1e-5, 1.0),
    ),
)
def _adamw(numbers: Any, units: Sequence[UnitGroup]) -> optax.GradientTransformation:
    options = {
        "b1": numbers.b1,
        "b2": numbers.b2,
        "weight_decay": numbers.decoupled_decay,
    }
    if not units:
        return optax.adamw(numbers.step_size, **options)
    return optimizers.adamw_with_unit_counts(numbers.step_size, units, **options)


@optimizer(
    "rmsprop",
    rms_decay=Hyperparameter(
        default_of(optax.rmsprop, "decay"),
        *(DECAY, None, "decay of RMSProp's second moments"),
    ),
)
def _rmsprop(numbers: Any, units: Sequence[UnitGroup]) -> optax.GradientTransformation:
    del units
    return optax.rmsprop(numbers.step_size, decay=numbers.rms_decay)


@optimizer(
    "muon",
    **_BETAS,
    muon_momentum=Hyperparameter(
        default_of(optax.contrib.muon, "beta"), DECAY, None, "momentum of Muon"
    ),
    muon_rms=Hyperparameter(
        # Source: Liu et al., arXiv:2502.16982. With it, Adam's step sizes suit Muon.
        *(0.2, FINITE, None),
        "root mean square of Muon's steps, in units of the step size",
    ),
)
def _muon(numbers: Any, units: Sequence[UnitGroup]) -> optax.GradientTransformation:
    del units
    return optax.contrib.muon(
        numbers.step_size,
        beta=numbers.muon_momentum,
        consistent_rms=numbers.muon_rms,
        adam_b1=numbers.b1,
        adam_b2=numbers.b2,
    )


def optimizer_hyperparameters(
    optimizer: str | None, fields: Mapping[str, Any]
) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters that a learner takes because of its optimizer.

    Args:
      optimizer: its name, or None for a method that is itself an optimizer. An unknown
        name has none of its own.
      fields: fields of its config; a linear model has no dropout.
    """
    is_linear = not (fields["hidden_layers"] or fields.get("conv_channels"))
    own = OPTIMIZERS[optimizer].hyperparameters if optimizer in OPTIMIZERS else {}
    return {
        name: hyperparameter
        for name, hyperparameter in _with_shared(own).items()
        if (optimizer or name in _OF_ANY_UPDATE)
        and not (is_linear and name == "dropout_rate")
    }


def _with_shared(own: Hyperparameters) -> dict[str, Hyperparameter]:
    """Adds what all optimizers take: the step size first, the rest at the end."""
    return {"step_size": _FOR_ALL["step_size"], **own, **_FOR_ALL}


ALWAYS_IN_CONFIGS: Hyperparameters = MappingProxyType(
    _with_shared({**OPTIMIZERS["sgd"].hyperparameters, **_BETAS})
)
"""Hyperparameters that every config has: of all optimizers, of SGD and of Adam."""

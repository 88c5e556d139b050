"""The methods that a case can name: what each takes, and how it is built.

A method is one entry of `METHODS`: its hyper-parameters with published values, ranges
and off values, and a function that puts it around, before or behind the optimizer.
Configs, sweeps, lanes and checks all read them here.
"""

from collections.abc import Callable, Mapping
import functools
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import optax

import cbp_jax
from experiments.learning.hyper_parameters import (
    AT_LEAST_ONE,
    DECAY,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    OPTIMIZER_PARAMETERS,
    HyperParameter,
    Range,
)


class Ingredients(NamedTuple):
    """What a method is built from, for one learner."""

    settings: SimpleNamespace  # Numbers by name, traced where lanes may differ.
    base: optax.GradientTransformation  # The optimizer with L2 before, noise behind.
    network: Any
    init_params: Callable[[jax.Array], Any]  # From a key.
    max_replaced: int  # Most units of a layer that a rate can replace in one update.
    updates_per_task: int
    key: jax.Array


class Method(NamedTuple):
    """A method and what it takes.

    Attributes:
      build: from the ingredients to an optax transformation.
      hyper_parameters: its own, by the name of their config field.
      resets_units: whether its state is a `cbp_jax.UnitResetState`, which the log and
        the measures of ages and resets read.
      sees_tasks: whether it is told when a task ends, as its definition wants.
      source: where it was published.
    """

    build: Callable[[Ingredients], optax.GradientTransformationExtraArgs]
    hyper_parameters: Mapping[str, HyperParameter] = MappingProxyType({})
    resets_units: bool = False
    sees_tasks: bool = False
    source: str = ""


def _backprop(given: Ingredients) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(given.base)


def _continual_backprop(
    given: Ingredients, utility_fn: Any = cbp_jax.utility.overall
) -> optax.GradientTransformationExtraArgs:
    return cbp_jax.continual_backprop(
        given.base,
        given.network.units(),
        replacement_rate=given.settings.replacement_rate,
        decay_rate=given.settings.decay_rate,
        maturity_threshold=given.settings.maturity_threshold,
        utility_fn=utility_fn,
        max_per_step=given.max_replaced,
        initializer=given.network.initializer(),
        key=given.key,
    )


def _redo(given: Ingredients) -> optax.GradientTransformationExtraArgs:
    return cbp_jax.redo(
        given.base,
        given.network.units(),
        threshold=given.settings.redo_threshold,
        reset_every=given.settings.redo_every,
        over_interval=True,
        initializer=given.network.initializer(),
        key=given.key,
    )


def _self_normalized(given: Ingredients) -> optax.GradientTransformationExtraArgs:
    return cbp_jax.self_normalized_resets(
        given.base,
        given.network.units(),
        rejection_rate=given.settings.snr_rejection_rate,
        first_threshold=given.settings.snr_first_threshold,
        lowest_threshold=given.settings.snr_lowest_threshold,
        initializer=given.network.initializer(),
        key=given.key,
    )


_REPLACEMENT = {
    "replacement_rate": HyperParameter(
        1e-4, FRACTION, 0.0, "share of eligible units replaced per update"
    ),
    "decay_rate": HyperParameter(0.99, DECAY, None, "of the utilities' average"),
    "maturity_threshold": HyperParameter(
        100, NOT_NEGATIVE, None, "updates before a unit can be replaced"
    ),
}
_REPLACES_UNITS = {"hyper_parameters": _REPLACEMENT, "resets_units": True}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "backprop": Method(_backprop),
        "continual_backprop": Method(
            _continual_backprop, source="Dohare et al. 2024", **_REPLACES_UNITS
        ),
        "random_replacement": Method(
            functools.partial(_continual_backprop, utility_fn=cbp_jax.utility.random),
            source="control",
            **_REPLACES_UNITS,
        ),
        "inverted_replacement": Method(
            functools.partial(
                _continual_backprop,
                utility_fn=cbp_jax.utility.inverted(cbp_jax.utility.overall),
            ),
            source="control",
            **_REPLACES_UNITS,
        ),
        "redo": Method(
            _redo,
            {
                "redo_threshold": HyperParameter(
                    0.1,
                    Range(-1, math.inf, includes_high=False),
                    -1.0,
                    "share of the layer's mean |h| below which a unit is dormant",
                ),
                "redo_every": HyperParameter(
                    1000, AT_LEAST_ONE, None, "updates between two resets"
                ),
            },
            resets_units=True,
            source="Sokar et al. 2023",
        ),
        "self_normalized_resets": Method(
            _self_normalized,
            {
                "snr_rejection_rate": HyperParameter(
                    0.02, DECAY, 0.0, "share of silences that count as too long"
                ),
                "snr_first_threshold": HyperParameter(
                    1000, FINITE, None, "updates of silence allowed without history"
                ),
                "snr_lowest_threshold": HyperParameter(
                    100, FINITE, None, "updates of silence always allowed"
                ),
            },
            resets_units=True,
            source="Farias and Jozefiak 2025",
        ),
    }
)
"""All methods by the name that `config.method` takes."""

HYPER_PARAMETERS: Mapping[str, HyperParameter] = MappingProxyType(
    dict(OPTIMIZER_PARAMETERS)
    | {
        name: parameter
        for method in METHODS.values()
        for name, parameter in method.hyper_parameters.items()
    }
)
"""All config fields that lanes of one program may differ in."""

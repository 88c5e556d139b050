"""Methods that reset hidden units: all go through `cbp_jax.reset_by_rule`."""

from collections.abc import Mapping
import functools
import math
from typing import Any

import optax

import cbp_jax
from experiments.learning.hyperparameters import (
    AT_LEAST_ONE,
    DECAY,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    Hyperparameter,
    Range,
)
from experiments.learning.methods.method import Ingredients, Method


def _continual_backprop(
    given: Ingredients, utility_fn: Any = cbp_jax.utility.overall
) -> optax.GradientTransformation:
    return cbp_jax.continual_backprop(
        given.base,
        given.network.units(),
        replacement_rate=given.hyperparameters.replacement_rate,
        decay_rate=given.hyperparameters.decay_rate,
        maturity_threshold=given.hyperparameters.maturity_threshold,
        utility_fn=utility_fn,
        max_per_step=given.max_replaced,
        initializer=given.network.initializer(),
        key=given.key,
    )


def _redo(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.redo(
        given.base,
        given.network.units(),
        threshold=given.hyperparameters.redo_threshold,
        reset_every=given.hyperparameters.redo_every,
        over_interval=True,
        initializer=given.network.initializer(),
        key=given.key,
    )


def _self_normalized_resets(given: Ingredients) -> optax.GradientTransformation:
    return cbp_jax.self_normalized_resets(
        given.base,
        given.network.units(),
        rejection_rate=given.hyperparameters.snr_rejection_rate,
        first_threshold=given.hyperparameters.snr_first_threshold,
        lowest_threshold=given.hyperparameters.snr_lowest_threshold,
        initializer=given.network.initializer(),
        key=given.key,
    )


_REPLACEMENT = {
    "replacement_rate": Hyperparameter(
        1e-4, FRACTION, 0.0, "share of eligible units replaced per update"
    ),
    "decay_rate": Hyperparameter(0.99, DECAY, None, "of the utilities' average"),
    "maturity_threshold": Hyperparameter(
        100, NOT_NEGATIVE, None, "updates before a unit can be replaced"
    ),
}


def _replacement(source: str, utility_fn: Any) -> Method:
    return Method(
        functools.partial(_continual_backprop, utility_fn=utility_fn),
        _REPLACEMENT,
        resets_units=True,
        source=source,
    )


UNIT_RESETS: Mapping[str, Method] = {
    "continual_backprop": _replacement("Dohare et al. 2024", cbp_jax.utility.overall),
    "random_replacement": _replacement("control", cbp_jax.utility.random),
    "inverted_replacement": _replacement(
        "control", cbp_jax.utility.inverted(cbp_jax.utility.overall)
    ),
    "redo": Method(
        _redo,
        {
            "redo_threshold": Hyperparameter(
                0.1,
                Range(-1, math.inf, includes_high=False),
                -1.0,
                "share of the layer's mean |h| up to which a unit is dormant",
            ),
            "redo_every": Hyperparameter(
                1000, AT_LEAST_ONE, None, "updates between two resets"
            ),
        },
        resets_units=True,
        source="Sokar et al. 2023",
    ),
    "self_normalized_resets": Method(
        _self_normalized_resets,
        {
            "snr_rejection_rate": Hyperparameter(
                0.02, DECAY, 0.0, "share of silences that count as too long"
            ),
            "snr_first_threshold": Hyperparameter(
                1000, FINITE, None, "updates of silence allowed without history"
            ),
            "snr_lowest_threshold": Hyperparameter(
                100, FINITE, None, "updates of silence always allowed"
            ),
        },
        resets_units=True,
        source="Farias and Jozefiak 2025",
    ),
}

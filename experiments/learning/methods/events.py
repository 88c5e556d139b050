"""Methods that act now and then: at the ends of tasks, or every so many updates."""

from collections.abc import Mapping

import optax

from cbp_jax import optimizers
from experiments.learning.hyperparameters import (
    AT_LEAST_ONE,
    FRACTION,
    Hyperparameter,
)
from experiments.learning.methods.method import Ingredients, Method


def _shrink_and_perturb(given: Ingredients) -> optax.GradientTransformation:
    event = optimizers.shrink_and_perturb_at_events(
        given.at_task_ends(),
        given.init_params,
        shrink=given.hyperparameters.shrink,
        perturb=given.hyperparameters.perturb,
        key=given.key,
    )
    return optax.chain(given.base, event)


def _selective_weight_reinitialization(
    given: Ingredients,
) -> optax.GradientTransformation:
    event = optimizers.selective_weight_reinitialization(
        optimizers.every(given.hyperparameters.swr_every),
        given.init_params,
        fraction=given.hyperparameters.swr_fraction,
        key=given.key,
    )
    return optax.chain(given.base, event)


def _fire(given: Ingredients) -> optax.GradientTransformation:
    return optax.chain(given.base, optimizers.fire(given.at_task_ends()))


def _hare_and_tortoise(given: Ingredients) -> optax.GradientTransformation:
    event = optimizers.hare_and_tortoise(
        optimizers.every(given.hyperparameters.hare_every),
        decay=given.hyperparameters.hare_decay,
    )
    return optax.chain(given.base, event)


def _head_reset(given: Ingredients) -> optax.GradientTransformation:
    event = optimizers.reset_params_at(
        given.at_task_ends(), given.init_params, layers="head", key=given.key
    )
    return optax.chain(given.base, event)


def _full_reset(given: Ingredients) -> optax.GradientTransformation:
    event = optimizers.reset_params_at(
        given.at_task_ends(), given.init_params, key=given.key
    )
    return optimizers.reset_optimizer_at(
        optax.chain(given.base, event), given.at_task_ends()
    )


def _optimizer_reset(given: Ingredients) -> optax.GradientTransformation:
    return optimizers.reset_optimizer_at(given.base, given.at_task_ends())


EVENTS: Mapping[str, Method] = {
    "shrink_and_perturb_events": Method(
        _shrink_and_perturb,
        {
            "shrink": Hyperparameter(
                0.4, FRACTION, 1.0, "factor on all parameters when a task ends"
            ),
            "perturb": Hyperparameter(
                0.1, FRACTION, 0.0, "share of a fresh network added when a task ends"
            ),
        },
        sees_tasks=True,
        source="Ash and Adams 2020",
    ),
    "selective_weight_reinitialization": Method(
        _selective_weight_reinitialization,
        {
            "swr_fraction": Hyperparameter(
                0.2, FRACTION, 0.0, "share of each tensor's weights redrawn"
            ),
            "swr_every": Hyperparameter(
                2000, AT_LEAST_ONE, None, "updates between two reinitializations"
            ),
        },
        source="Hernandez-Garcia et al. 2025",
    ),
    "fire": Method(_fire, sees_tasks=True, source="Han et al. 2026"),
    "hare_and_tortoise": Method(
        _hare_and_tortoise,
        {
            "hare_decay": Hyperparameter(
                0.999, FRACTION, 0.0, "of the slow average of the parameters"
            ),
            "hare_every": Hyperparameter(
                1000, AT_LEAST_ONE, None, "updates between two returns to the average"
            ),
        },
        evaluated_params=optimizers.slow_params,
        source="Lee et al. 2024",
    ),
    "head_reset": Method(_head_reset, sees_tasks=True, source="control"),
    "full_reset": Method(
        _full_reset, sees_tasks=True, resets_network=True, source="control"
    ),
    "optimizer_reset": Method(_optimizer_reset, sees_tasks=True, source="control"),
}

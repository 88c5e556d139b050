"""Methods that act on every gradient or every update: a link before or behind."""

from collections.abc import Mapping
import functools

import optax

from cbp_jax import optimizers
from experiments.learning.hyperparameters import (
    AT_LEAST_ONE,
    DECAY,
    FINITE,
    NOT_NEGATIVE,
    Hyperparameter,
)
from experiments.learning.methods.method import Ingredients, Method


def _backprop(given: Ingredients) -> optax.GradientTransformation:
    return given.base


def _l2_init(given: Ingredients) -> optax.GradientTransformation:
    return optax.chain(
        optimizers.l2_init(given.hyperparameters.l2_init_strength), given.base
    )


def _spectral_regularization(given: Ingredients) -> optax.GradientTransformation:
    penalty = optimizers.spectral_regularization(
        given.hyperparameters.spectral_strength,
        exponent=given.hyperparameters.spectral_exponent,
        key=given.key,
    )
    return optax.chain(penalty, given.base)


def _weight_clipping(given: Ingredients) -> optax.GradientTransformation:
    clip = optimizers.clip_weights(
        given.hyperparameters.clipping_kappa, bounds=given.weight_bounds
    )
    return optax.chain(given.base, clip)


def _normalize_and_project(given: Ingredients) -> optax.GradientTransformation:
    return optax.chain(given.base, optimizers.project_norms())


def _upgd(given: Ingredients, protecting: bool = True) -> optax.GradientTransformation:
    return optimizers.upgd(
        given.hyperparameters.step_size,
        decay_rate=given.hyperparameters.upgd_decay_rate,
        noise_scale=given.hyperparameters.upgd_noise_scale,
        weight_decay=given.hyperparameters.upgd_weight_decay,
        protecting=protecting,
        key=given.key,
        noise=given.noise,
    )


_UPGD = {
    "upgd_decay_rate": Hyperparameter(0.999, DECAY, None, "of the utilities' average"),
    "upgd_noise_scale": Hyperparameter(
        1e-3, FINITE, None, "standard deviation of the noise on the gradient"
    ),
    "upgd_weight_decay": Hyperparameter(
        0.0, FINITE, None, "shrinkage of the params, times the step size"
    ),
}

REGULARIZERS: Mapping[str, Method] = {
    "backprop": Method(_backprop),
    "l2_init": Method(
        _l2_init,
        {
            "l2_init_strength": Hyperparameter(
                1e-3, FINITE, 0.0, "L2 toward the initial parameters"
            )
        },
        source="Kumar et al. 2023",
    ),
    "spectral_regularization": Method(
        _spectral_regularization,
        {
            "spectral_strength": Hyperparameter(
                1e-3, FINITE, 0.0, "penalty on the distance of spectral norms from 1"
            ),
            "spectral_exponent": Hyperparameter(
                2, AT_LEAST_ONE, None, "power of a spectral norm in the penalty"
            ),
        },
        source="Lewandowski et al. 2024",
    ),
    "weight_clipping": Method(
        _weight_clipping,
        {
            "clipping_kappa": Hyperparameter(
                2.0, NOT_NEGATIVE, float("inf"), "multiple of the initial bound"
            )
        },
        source="Elsayed et al. 2024",
    ),
    "normalize_and_project": Method(
        _normalize_and_project,
        normalizations=("layer", "rms"),
        source="Lyle et al. 2024",
    ),
    "upgd": Method(
        _upgd, _UPGD, replaces_optimizer=True, source="Elsayed and Mahmood 2024"
    ),
    "upgd_nonprotecting": Method(
        functools.partial(_upgd, protecting=False),
        _UPGD,
        replaces_optimizer=True,
        source="Elsayed and Mahmood 2024",
    ),
}

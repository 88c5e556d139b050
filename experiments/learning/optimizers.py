"""From a config to the base optimizer: L2 in front of it, noise behind it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jax
import optax

import cbp_jax
from experiments.learning.checks import ConfigError


def make_base_optimizer(
    config: Any,
    hyperparameters: SimpleNamespace,
    units: Sequence[cbp_jax.UnitGroup],
    noise_key: jax.Array,
) -> optax.GradientTransformation:
    """Builds an optimizer with L2 and noise where a lane may have any.

    Args:
      config: `optimizer`, a key of `OPTIMIZERS`, and `noise`, see `perturb`.
      hyperparameters: the learner's hyperparameters.
      units: of its network.
      noise_key: typed key of the noise.
    """
    base = OPTIMIZERS[config.optimizer](hyperparameters, units)
    if not is_off(hyperparameters.weight_decay):
        base = optax.chain(
            optax.add_decayed_weights(hyperparameters.weight_decay), base
        )
    if not is_off(hyperparameters.noise_scale):
        noise = cbp_jax.optimizers.perturb(
            hyperparameters.noise_scale, key=noise_key, noise=config.noise
        )
        base = optax.chain(base, noise)
    return base


def check_plain(config: Any, method: str) -> None:
    """Raises ConfigError if a method would ignore a field of the base optimizer."""
    if config.optimizer != "sgd":
        raise ConfigError(
            f"config.method {method!r} is an optimizer itself: set config.optimizer to "
            f"'sgd', got {config.optimizer!r}."
        )
    for name in ("momentum", "weight_decay", "noise_scale"):
        values = (config[name], *config.sweep.get(name, ()))
        if any(value != 0 for value in values):
            raise ConfigError(
                f"config.method {method!r} is an optimizer itself and takes no "
                f"config.{name}: set it to 0, got {max(values)}."
            )


def is_off(value: Any) -> bool:
    """Whether a hyperparameter is 0 in every lane, so its code can be left out."""
    return isinstance(value, (int, float)) and value == 0


def _sgd(
    hyperparameters: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    del units
    momentum = None if is_off(hyperparameters.momentum) else hyperparameters.momentum
    return optax.sgd(hyperparameters.step_size, momentum=momentum)


def _adam(
    hyperparameters: SimpleNamespace, units: Sequence[cbp_jax.UnitGroup]
) -> optax.GradientTransformation:
    betas = {"b1": hyperparameters.b1, "b2": hyperparameters.b2}
    if not units:
        return optax.adam(hyperparameters.step_size, **betas)
    return cbp_jax.optimizers.adam_with_unit_counts(
        hyperparameters.step_size, units, **betas
    )


OPTIMIZERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sgd": _sgd, "adam": _adam}
)
"""All optimizers by the name that `config.optimizer` takes."""

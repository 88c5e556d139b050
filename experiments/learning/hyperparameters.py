"""The config fields that may differ from lane to lane of one compiled program."""

from collections.abc import Mapping
import math
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.learning.checks import ConfigError


class Range(NamedTuple):
    """The numbers that a hyperparameter may be."""

    low: float
    high: float
    includes_high: bool

    def __str__(self) -> str:
        """Writes the range with a square bracket where its end is included."""
        return f"[{self.low:g}, {self.high:g}{']' if self.includes_high else ')'}"

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError for a number outside, also once it is a float32."""
        try:
            with np.errstate(over="ignore"):
                rounded = np.float32(float(value))
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                f"config.{name} must be a number in {self}, got {value!r}."
            ) from error
        below = rounded <= self.high if self.includes_high else rounded < self.high
        if not (self.low <= rounded and below):
            is_exact = math.isnan(value) or float(rounded) == value
            as_float32 = "" if is_exact else f", which is {rounded} in float32"
            raise ConfigError(
                f"config.{name} must be in {self}, got {value}{as_float32}."
            )


FINITE = Range(0, math.inf, includes_high=False)
AT_LEAST_ONE = Range(1, math.inf, includes_high=False)
NOT_NEGATIVE = Range(0, math.inf, includes_high=True)
FRACTION = Range(0, 1, includes_high=True)
DECAY = Range(0, 1, includes_high=False)


class Hyperparameter(NamedTuple):
    """A number that a method or an optimizer takes.

    Attributes:
      default: the published value, or the usual one.
      range: what it may be.
      off: the value at which it does nothing. Where all lanes have it, nothing is
        compiled for it. None if there is no such value.
      meaning: what it is, with its unit.
    """

    default: float
    range: Range
    off: float | None
    meaning: str


OPTIMIZER_HYPERPARAMETERS: Mapping[str, Hyperparameter] = MappingProxyType(
    {
        "step_size": Hyperparameter(0.01, FINITE, None, "step size"),
        "momentum": Hyperparameter(0.0, DECAY, 0.0, "momentum of SGD"),
        "b1": Hyperparameter(0.9, DECAY, None, "decay of Adam's first moments"),
        "b2": Hyperparameter(0.999, DECAY, None, "decay of Adam's second moments"),
        "weight_decay": Hyperparameter(
            0.0, FINITE, 0.0, "L2 on all parameters, added to the gradient"
        ),
        "noise_scale": Hyperparameter(
            0.0, FINITE, 0.0, "standard deviation of noise on all parameters per update"
        ),
        "dropout_rate": Hyperparameter(
            0.0, DECAY, 0.0, "share of hidden activations dropped"
        ),
    }
)
"""What learners take whatever their method, by `optimizer_hyperparameters`."""

_OF_ONE_OPTIMIZER = {"momentum": "sgd", "b1": "adam", "b2": "adam"}
_OF_ANY_UPDATE = ("step_size", "dropout_rate")


def optimizer_hyperparameters(optimizer: str | None) -> dict[str, Hyperparameter]:
    """Returns what a learner takes by its optimizer.

    Args:
      optimizer: its name, or None for a method that is an optimizer itself.
    """
    return {
        name: parameter
        for name, parameter in OPTIMIZER_HYPERPARAMETERS.items()
        if name in _OF_ANY_UPDATE
        or (optimizer and _OF_ONE_OPTIMIZER.get(name, optimizer) == optimizer)
    }

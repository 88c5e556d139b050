"""The numbers that can differ between the lanes of one compiled program.

They are declared with the method, optimizer, normalization or activation that takes
them, and collected here by the name of their config field.
"""

from collections.abc import Callable, Mapping
import inspect
import math
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.learning.checks import ConfigError


class Range(NamedTuple):
    """The allowed values of a hyperparameter."""

    low: float
    high: float
    includes_high: bool

    def __str__(self) -> str:
        """Writes the range, with a square bracket for an included end."""
        return f"[{self.low:g}, {self.high:g}{']' if self.includes_high else ')'}"

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError unless a value, rounded to float32, is in the range."""
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
    """A number that a method, optimizer, normalization or activation takes.

    Attributes:
      default: the published or usual value, which is the library's default if it has
        one.
      range: its allowed values.
      off: the value at which it has no effect, or None. If all lanes have this value,
        no code is compiled for it.
      meaning: its description, with its unit.
      values: the values that comparisons try; empty for only the default.
    """

    default: float
    range: Range
    off: float | None
    meaning: str
    values: tuple[float, ...] = ()

    def check(self, name: str) -> None:
        """Raises ConfigError if any of its values is out of range."""
        for value in (self.default, self.off, *self.values):
            if value is not None:
                self.range.check(name, value)


Hyperparameters = Mapping[str, Hyperparameter]

_DECLARED: dict[str, Hyperparameter] = {}
HYPERPARAMETERS: Hyperparameters = MappingProxyType(_DECLARED)
"""All config fields that may differ between the lanes of one program."""


def declare_hyperparameters(hyperparameters: Hyperparameters) -> None:
    """Adds hyperparameters to `HYPERPARAMETERS`.

    Args:
      hyperparameters: by config field. Several methods may declare the same.

    Raises:
      ValueError: one is already declared differently, or a number is out of range.
    """
    for name, hyperparameter in hyperparameters.items():
        if _DECLARED.get(name, hyperparameter) != hyperparameter:
            raise ValueError(
                f"The hyperparameter {name!r} is declared twice, as "
                f"{_DECLARED[name]} and as {hyperparameter}; prefix its name "
                "with that of its method."
            )
        hyperparameter.check(name)
    _DECLARED.update(hyperparameters)


def default_of(function: Callable[..., Any], parameter: str) -> float:
    """Returns the default of a parameter of a function."""
    return inspect.signature(function).parameters[parameter].default


def is_off(value: Any) -> bool:
    """Whether a number is 0 in every lane, so that its code can be omitted."""
    return isinstance(value, (int, float)) and value == 0

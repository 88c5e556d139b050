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
from experiments.reporting import scales


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
      scale: the scale on which searches spread their trials, one of
        `experiments.reporting.scales.SCALES`.
      search: the lowest and the highest value of the usual search, or the values to
        choose from; empty for those of `values`.
    """

    default: float
    range: Range
    off: float | None
    meaning: str
    values: tuple[float, ...] = ()
    scale: str = scales.LOG
    search: tuple[float, ...] = ()

    @property
    def usual_search(self) -> tuple[float, ...]:
        """The range of the usual search, or the values to choose from; or empty."""
        if self.search or not self.values or self.scale == scales.CHOICE:
            return self.search or self.values
        ends = min(self.values), max(self.values)
        can_search = ends[0] < ends[1] and scales.is_on(self.scale, ends)
        return ends if can_search else ()

    def check(self, name: str) -> None:
        """Raises ConfigError if any of its values is out of range."""
        for value in (self.default, self.off, *self.values):
            if value is not None:
                self.range.check(name, value)
        if self.scale not in scales.SCALES:
            raise ConfigError(
                f"The scale of {name!r} is {self.scale!r}: choose one of "
                f"{list(scales.SCALES)}."
            )
        if self.usual_search:
            self.check_search(f"search.{name}", self.usual_search)

    def check_search(self, path: str, ends: Any) -> None:
        """Raises ConfigError unless it can be searched in a range.

        Args:
          path: the field of the config that holds the range.
          ends: the lowest and the highest value; for a choice, the values.
        """
        is_choice = self.scale == scales.CHOICE
        if not isinstance(ends, list | tuple) or (not is_choice and len(ends) != 2):
            form = "(VALUE, VALUE, ...)" if is_choice else "(LOW, HIGH)"
            raise ConfigError(
                f"config.{path} is {ends!r}, which is no "
                f"{'choice of values' if is_choice else 'range'}: write {form}."
            )
        for value in ends:
            self.range.check(path, value)
        if is_choice:
            if len(set(ends)) < len(ends):
                raise ConfigError(
                    f"config.{path} contains a value twice: {ends}. Remove the "
                    "duplicate."
                )
            return
        if not ends[0] < ends[1]:
            raise ConfigError(
                f"config.{path} is {ends}, but its first value must be lower than its "
                "second: write (LOW, HIGH)."
            )
        if not scales.is_on(self.scale, ends):
            raise ConfigError(
                f"config.{path} is {ends}, which does not fit on the scale "
                f"{self.scale!r}: write a range of finite values above 0."
            )


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

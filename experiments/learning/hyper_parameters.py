"""The config fields that may differ from lane to lane of one compiled program."""

from collections.abc import Mapping
import math
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.learning.checks import ConfigError


class Range(NamedTuple):
    """The numbers that a hyper-parameter may be, from `low` on."""

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
                rounded = np.float32(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config.{name} must be a number in {self}, got {value!r}."
            ) from error
        below = rounded <= self.high if self.includes_high else rounded < self.high
        if not (self.low <= rounded and below):
            as_float32 = "" if float(rounded) == value else f", {rounded} in float32"
            raise ConfigError(
                f"config.{name} must be in {self}, got {value}{as_float32}."
            )


_FINITE = Range(0, math.inf, includes_high=False)
_FRACTION = Range(0, 1, includes_high=True)
_DECAY = Range(0, 1, includes_high=False)

HYPER_PARAMETERS: Mapping[str, Range] = MappingProxyType(
    {
        "step_size": _FINITE,
        "momentum": _DECAY,
        "b1": _DECAY,
        "b2": _DECAY,
        "weight_decay": _FINITE,
        "noise_scale": _FINITE,
        "dropout_rate": _DECAY,
        "replacement_rate": _FRACTION,
        "decay_rate": _DECAY,
        "maturity_threshold": Range(0, math.inf, includes_high=True),
    }
)
"""Names of the fields, and what each may be."""

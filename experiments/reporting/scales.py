"""Scales of hyperparameters: where a search tries values, and how figures draw them.

A search spreads its trials evenly on the scale of a hyperparameter, from the low to the
high end of a range, or over a choice of values.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

LOG = "log"
LINEAR = "linear"
LOG_COMPLEMENT = "log_complement"
CHOICE = "choice"

_DIGITS = 4


class _Line(NamedTuple):
    """A map onto the line on which trials are spread evenly; it increases."""

    forward: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


def _round(values: np.ndarray) -> np.ndarray:
    """Rounds to four significant digits, which are the same on every machine."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in values])


_LINES: Mapping[str, _Line] = MappingProxyType(
    {
        LOG: _Line(np.log, lambda line: _round(np.exp(line))),
        LINEAR: _Line(lambda values: values, _round),
        # The digits that matter are those of the distance from 1.
        LOG_COMPLEMENT: _Line(
            lambda values: -np.log1p(-values),
            lambda line: np.round(1 - _round(np.exp(-line)), 12),
        ),
    }
)

SCALES = (*_LINES, CHOICE)
"""Names of the scales: `log`, `linear`, `log_complement` (the logarithm of 1 - value,
for decay rates near 1), and `choice` (one of some values)."""


def is_on(scale: str, ends: Sequence[float]) -> bool:
    """Whether a scale has both ends of a range, as a logarithm does not have 0."""
    if scale == CHOICE:
        return True
    with np.errstate(divide="ignore", invalid="ignore"):
        return bool(np.isfinite(_LINES[scale].forward(np.asarray(ends, float))).all())


def values_at(scale: str, ends: Sequence[float], places: np.ndarray) -> np.ndarray:
    """Returns the values at some places of a range.

    Args:
      scale: one of `SCALES`.
      ends: the lowest and the highest value; for a choice, the values.
      places: fractions of the range, from 0 to 1 without 1.

    Returns:
      float64, like `places`; rounded to four significant digits, and from the lowest to
      the highest value.
    """
    if scale == CHOICE:
        chosen = np.floor(np.asarray(places) * len(ends)).astype(int)
        return np.asarray(ends, float)[chosen]
    line = _LINES[scale]
    low, high = line.forward(np.asarray(ends, float))
    return np.clip(line.back(low + np.asarray(places) * (high - low)), *ends)


def place_in(scale: str, ends: Sequence[float], value: float) -> float:
    """Returns the place of a value in a range, as a fraction on its scale.

    Args:
      scale: one of `SCALES` other than `choice`.
      ends: the lowest and the highest value.
      value: a value between them.
    """
    low, high, place = _LINES[scale].forward(np.array([*ends, value], float))
    return float((place - low) / (high - low))

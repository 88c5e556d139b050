"""Times of cases beside each other."""

from collections.abc import Mapping

import numpy as np


def rows_of_times(
    seconds: Mapping[str, np.ndarray], reference: str, *, unit: str
) -> list[dict[str, str]]:
    """Lays out times, the fastest case first.

    Args:
      seconds: for each case seconds per update, [rounds].
      reference: the case to divide by, round by round.
      unit: heading of the column of microseconds.

    Returns:
      One line for each case: medians over the rounds, and the range that holds the
      middle half of them.
    """
    found = []
    for name in sorted(seconds, key=lambda name: np.median(seconds[name])):
        microseconds, ratio = 1e6 * seconds[name], seconds[name] / seconds[reference]
        found.append(
            {
                "case": name,
                unit: _median(microseconds),
                f"ratio to {reference}": _median(ratio),
            }
        )
    return found


def _median(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"

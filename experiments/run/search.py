"""The trials of a search: points that fill the ranges of hyperparameters evenly."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.learning.checks import ConfigError
from experiments.reporting import scales

_SEED = 0
# Dimensions of the sequence, of which a search uses the first ones.
_MOST = 16


def draw_trials(
    ranges: Mapping[str, tuple[str, Sequence[float]]], num_trials: int
) -> dict[str, np.ndarray]:
    """Draws the trials of a search.

    The points are the first of a scrambled Sobol sequence with a fixed seed. A search
    with more trials therefore begins with the same points. The first hyperparameter,
    nearly always the step size, is at the same places of its range for all methods.

    Args:
      ranges: for each hyperparameter its scale and the ends of its range, or the values
        to choose from; see `experiments.reporting.scales`.
      num_trials: N, at least 1.

    Returns:
      The values of each hyperparameter, float64 [N].

    Raises:
      ConfigError: there are too many hyperparameters.

    Source: Sobol 1967, scrambled as in Matousek, "On the L2-discrepancy for anchored
    boxes", Journal of Complexity 14, 1998.
    """
    # It takes a second to import.
    from scipy.stats import qmc

    if len(ranges) > _MOST:
        raise ConfigError(
            f"config.search contains {len(ranges)} hyperparameters of one case, but a "
            f"search can have at most {_MOST}: set some of them to ()."
        )
    # The number of points is a power of 2, or SciPy would warn.
    sequence = qmc.Sobol(_MOST, scramble=True, rng=_SEED)
    places = sequence.random_base2((num_trials - 1).bit_length())[:num_trials]
    return {
        name: scales.values_at(scale, ends, column)
        for (name, (scale, ends)), column in zip(ranges.items(), places.T, strict=False)
    }

"""Statistics of paired seeds: one seed is one stream of tasks for two methods."""

from typing import NamedTuple

import numpy as np
from scipy import stats

FEWEST_TO_RESAMPLE = 8
"""Seeds from which on the interval is a bootstrap, below it is Student's t."""

_LEVEL = 0.95
_NUM_RESAMPLES = 9999


class Paired(NamedTuple):
    """A method compared with a reference on the same seeds."""

    difference: float  # Mean over seeds of the method's score minus the reference's.
    low: float  # Of its 95 % confidence interval; NaN where a difference is infinite.
    high: float
    won: float  # Share of seeds on which the method is better; a tie is half a seed.
    verdict: str  # "better", "worse", "undecided", or "diverged" without an interval.


def compare(
    values: np.ndarray, reference: np.ndarray, more_is_better: bool, rng_seed: int
) -> Paired:
    """Compares the scores of two methods.

    Args:
      values: [seeds], at least two, infinite for a lost seed.
      reference: of the same seeds.
      more_is_better: the direction of the score.
      rng_seed: of the resampling.
    """
    # Two lost seeds are a tie.
    both_lost = np.isinf(values) & (values == reference)
    difference = np.subtract(
        values, reference, where=~both_lost, out=np.zeros(values.shape)
    )
    better = difference > 0 if more_is_better else difference < 0
    won = np.mean(better + 0.5 * (difference == 0))
    with np.errstate(invalid="ignore"):  # Where each method loses a seed of its own.
        mean = float(difference.mean())
    low, high = mean_interval(difference, rng_seed)
    if np.isnan(low):
        verdict = "diverged"
    elif low <= 0 <= high:
        verdict = "undecided"
    else:
        verdict = "better" if (mean > 0) == more_is_better else "worse"
    return Paired(mean, low, high, float(won), verdict)


def mean_interval(values: np.ndarray, rng_seed: int) -> tuple[float, float]:
    """Returns the ends of a 95 % confidence interval of a mean over seeds.

    The percentile bootstrap is too narrow for few seeds: instead of 95 % it covers, of
    normal values, 90 % with 10 seeds and 93 % with 30; BCa and the basic bootstrap do
    the same. It is therefore taken at the level that makes it as wide, for normal
    values, as Student's t. In 2,000 simulated comparisons each of normal, Laplace and
    Student's t3 values this covers 94 to 96 % from 8 seeds on; of exponential ones 89 %
    with 8 seeds and 94 % with 30, a little more than Student's t. With fewer seeds no
    resampling reaches far enough, and Student's t is used.

    Args:
      values: [seeds].
      rng_seed: of the resampling; equal values give equal intervals.

    Returns:
      Low and high end; NaN for a single value, or if one is not finite.

    Source: Hesterberg, "What teachers should know about the bootstrap", The American
    Statistician 69, 2015, section 4 (the expanded percentile interval).
    """
    number = values.size
    if number < 2 or not np.isfinite(values).all():
        return np.nan, np.nan
    quantile = stats.t.ppf((1 + _LEVEL) / 2, number - 1)
    if number < FEWEST_TO_RESAMPLE:
        half_width = quantile * stats.sem(values)
        return float(values.mean() - half_width), float(values.mean() + half_width)
    tail = stats.norm.cdf(-quantile * np.sqrt(number / (number - 1)))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_NUM_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(rng_seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def interquartile_mean(values: np.ndarray) -> float:
    """Averages the middle half of values: a quarter, rounded down, is cut at each end.

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical
    precipice", NeurIPS 2021.
    """
    return float(stats.trim_mean(values, 0.25))

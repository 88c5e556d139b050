"""Which of many methods differ: paired tests, corrected for their number.

Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
Journal of Statistics 6, 1979; Demsar, "Statistical comparisons of classifiers over
multiple data sets", JMLR 7, 2006 (groups); Agarwal et al., "Deep reinforcement learning
at the edge of the statistical precipice", NeurIPS 2021 (probability of improvement).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools

import numpy as np


def difference_of(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns values minus reference; two infinite scores, both lost, are a tie."""
    both_lost = np.isinf(values) & (values == reference)
    return np.subtract(
        values, reference, where=~both_lost, out=np.zeros(values.shape, float)
    )


def p_value(values: np.ndarray, reference: np.ndarray) -> float:
    """Tests whether the scores of two methods differ, two-sided and paired.

    It is Student's t-test of the differences or, if one of them is infinite, the exact
    sign test.

    Args:
      values: [seeds].
      reference: [seeds], on the same seeds.

    Returns:
      The p-value; 1 for fewer than two seeds.
    """
    from scipy import stats

    difference = difference_of(values, reference)
    if difference.size < 2:
        return 1.0
    if not np.isfinite(difference).all():
        num_higher = int((difference > 0).sum())
        num_decided = int((difference != 0).sum())
        return float(stats.binomtest(num_higher, num_decided).pvalue)
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    if error == 0:
        return float(difference[0] == 0)
    return float(2 * stats.t.sf(abs(difference.mean()) / error, difference.size - 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects p-values so that any error among all tests has their level.

    Args:
      p_values: of m tests, dependent in any way.

    Returns:
      The corrected p-values, [m], at most 1.
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(p_values.size, 0, -1)
    corrected = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected[np.argsort(order, kind="stable")]


def groups(
    scores: Mapping[str, Mapping[int, float]], level: float = 0.05
) -> list[list[str]]:
    """Returns groups of methods that cannot be told apart.

    All pairs of methods are compared on their common seeds, and the tests are corrected
    for the number of pairs. A group is a longest run of methods in the given order, no
    two of which differ. Groups can overlap.

    Args:
      scores: the score of each seed, by method, the best method first.
      level: probability that equal methods are told apart anywhere.

    Returns:
      The groups in order, together with all methods.
    """
    methods = list(scores)
    pairs = list(itertools.combinations(range(len(methods)), 2))
    p_values = []
    for one, other in pairs:
        first, second = scores[methods[one]], scores[methods[other]]
        seeds = sorted(first.keys() & second.keys())
        p_values.append(
            p_value(*(np.array([own[s] for s in seeds]) for own in (first, second)))
        )
    differ = {
        pair
        for pair, corrected in zip(pairs, holm(p_values), strict=True)
        if corrected < level
    }
    found: list[list[str]] = []
    last_end = 0
    for start in range(len(methods)):
        end = start + 1
        while end < len(methods) and not any(
            (one, end) in differ for one in range(start, end)
        ):
            end += 1
        if end > last_end:
            found.append(methods[start:end])
            last_end = end
    return found


def probability_of_improvement(values: np.ndarray, reference: np.ndarray) -> float:
    """Returns the probability that a run is higher than a run of the reference.

    Args:
      values: [seeds] of one method.
      reference: [seeds] of the other; the seeds need not be the same.

    Returns:
      The fraction of all pairs in which it is higher; ties count half.
    """
    one, other = np.asarray(values)[:, None], np.asarray(reference)[None]
    return float(np.mean((one > other) + 0.5 * (one == other)))

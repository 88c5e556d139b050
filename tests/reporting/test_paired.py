"""Statistics of paired seeds against closed forms and in simulation."""

import numpy as np
import pytest
from scipy import stats

from experiments.reporting import comparison


def skewed(random, size):
    """Exponential values less their mean of 1."""
    return random.exponential(size=size) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_seeds", "draw", "coverage"),
    [
        (5, np.random.Generator.standard_normal, 0.95),
        (10, np.random.Generator.standard_normal, 0.95),
        (30, np.random.Generator.standard_normal, 0.95),
        (10, np.random.Generator.laplace, 0.95),
        # Known to be too few: Student's t covers 0.89 here.
        (10, skewed, 0.90),
    ],
)
def test_intervals_cover_the_true_difference(num_seeds, draw, coverage):
    """Of many comparisons as many as a binomial distribution allows."""
    random = np.random.default_rng(num_seeds)
    comparisons, true_difference = 600, -0.7
    noise = draw(random, size=(comparisons, num_seeds))
    streams = random.normal(0, 10, noise.shape)  # Common to both methods.
    covered = 0
    for stream, one in zip(streams, noise, strict=True):
        pair = comparison.pair(
            stream + true_difference + one, stream, more_is_better=True, rng_seed=0
        )
        covered += pair.low <= true_difference <= pair.high
    probability = stats.binomtest(covered, comparisons, coverage).pvalue
    assert probability > 1e-3, f"{covered} of {comparisons}"


def test_with_few_seeds_the_interval_is_that_of_student():
    values = np.array([0.1, 0.3, 0.2, 0.7])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose(comparison.mean_interval(values, 0), expected)


def test_the_bootstrap_follows_its_seed_and_never_leaves_the_values():
    values = np.random.default_rng(0).exponential(size=12)
    first = comparison.mean_interval(values, 0)
    assert comparison.mean_interval(values, 0) == first
    assert comparison.mean_interval(values, 1) != first
    np.testing.assert_allclose(comparison.mean_interval(values, 1), first, rtol=0.05)
    assert values.min() < first[0] < values.mean() < first[1] < values.max()
    # Not symmetric: it reaches further to the side of the long tail.
    assert first[1] - values.mean() > values.mean() - first[0]


def test_equal_scores_have_an_interval_of_no_width():
    pair = comparison.pair(np.full(9, 0.3), np.full(9, 0.3), True, 0)
    assert pair == (0, 0, 0, 0.5, "undecided")


def test_seeds_are_won_by_the_better_and_shared_in_a_tie():
    values, reference = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 1, 4, 2, 1])
    assert comparison.pair(values, reference, True, 0).won == 0.7
    assert comparison.pair(values, reference, False, 0).won == 0.3


def test_infinite_scores_tie_with_each_other_and_lose_to_others():
    values, reference = np.array([1.0, np.inf, 3]), np.array([1.0, np.inf, 4])
    pair = comparison.pair(values, reference, False, 0)
    assert (pair.difference, pair.won) == (pytest.approx(-1 / 3), pytest.approx(2 / 3))
    assert np.isfinite([pair.low, pair.high]).all()
    lost = comparison.pair(np.array([np.inf, 0]), np.array([1.0, 1]), False, 0)
    assert (lost.difference, lost.won, lost.verdict) == (np.inf, 0.5, "diverged")
    both = comparison.pair(np.array([np.inf, 0]), np.array([1, np.inf]), False, 0)
    assert np.isnan([both.difference, both.low]).all()
    assert both.verdict == "diverged"


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end():
    values = np.array([100.0, 1, 2, 3, 4, -100, 5, 6, np.inf])
    assert comparison.interquartile_mean(values) == pytest.approx(
        (2 + 3 + 4 + 5 + 6) / 5
    )

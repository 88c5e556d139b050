"""Paired tests of many methods: closed forms, and how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from experiments.reporting import ranking


def by_seed(values):
    return dict(enumerate(values))


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    corrected = ranking.holm([0.03, 0.01, 0.012, 0.5])
    np.testing.assert_allclose(corrected, [0.06, 0.04, 0.04, 0.5])
    np.testing.assert_allclose(ranking.holm([0.6, 0.7]), [1, 1])
    assert ranking.holm([]).size == 0


def test_the_p_value_is_that_of_paired_t_or_signs():
    random = np.random.default_rng(0)
    values, reference = random.normal(size=(2, 9))
    expected = stats.ttest_rel(values, reference).pvalue
    assert ranking.p_value(values, reference) == pytest.approx(expected)
    assert ranking.p_value(reference, values) == pytest.approx(expected)
    # Six of seven decided seeds are lower; in one both errors are infinite.
    values = np.array([1.0, 1, 1, 1, 1, 1, 3, np.inf])
    reference = np.array([2.0, 2, 2, 2, 2, np.inf, 2, np.inf])
    expected = 2 * (1 + 7) / 2**7
    assert ranking.p_value(values, reference) == pytest.approx(expected)
    equal, higher = np.full(4, 0.3), np.full(4, 0.5)
    assert ranking.p_value(equal, equal) == 1
    assert ranking.p_value(equal, higher) == 0
    assert ranking.p_value(equal[:1], higher[:1]) == 1


def test_groups_are_the_longest_runs_without_a_difference():
    noise = np.array([-0.1, 0.1, -0.05, 0.05, -0.08, 0.08])
    near = {"b": 0.05 * noise, "c": 0.9 * noise[::-1] + 0.02}
    scores = {
        "a": by_seed(1 + noise),
        "b": by_seed(1 + noise + near["b"]),
        "c": by_seed(0.9 + near["c"]),
        "d": by_seed(0.4 + noise),
        "e": by_seed(0.4 + 1.2 * noise),
    }
    assert ranking.groups(scores) == [["a", "b", "c"], ["d", "e"]]
    # A method between two that differ is in the groups of both.
    scores = {
        "a": by_seed(0.10 + 0.01 * noise),
        "b": by_seed(3 * noise),
        "c": by_seed(-0.10 + 0.01 * noise[::-1]),
    }
    assert ranking.groups(scores) == [["a", "b"], ["b", "c"]]


def test_methods_are_compared_on_their_common_seeds():
    noise = np.array([0.0, 0.01, -0.01, 0.02, 0.3])
    one = dict(zip(range(5), 0.5 + noise, strict=True))
    other = dict(zip(range(1, 6), [*(noise[1:] + 0.1), 9.0], strict=True))
    assert ranking.groups({"one": one, "other": other}) == [["one"], ["other"]]
    assert ranking.groups({"one": {0: 1.0}, "other": {1: 2.0}}) == [["one", "other"]]


def test_of_equal_methods_any_is_told_apart_in_one_of_twenty_comparisons():
    """Of groups of all pairs, and of Holm against a reference."""
    random, number, level = np.random.default_rng(1), 300, 0.05
    split, better = 0, 0
    for _ in range(number):
        streams = random.normal(0, 3, size=6)  # Common to all methods.
        scores = streams + random.normal(size=(5, 6))
        order = scores[np.argsort(-scores.mean(axis=1))]
        methods = {str(index): by_seed(one) for index, one in enumerate(order)}
        split += len(ranking.groups(methods, level)) > 1
        p_values = [ranking.p_value(one, scores[0]) for one in scores[1:]]
        better += ranking.holm(p_values).min() < level
    # At most what a binomial distribution of this level exceeds once in a thousand.
    most = stats.binom.ppf(0.999, number, level)
    assert 0 < split <= most
    assert 0 < better <= most


def test_without_holm_more_would_be_told_apart():
    """So that the test above can fail."""
    random = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        scores = random.normal(size=(5, 6))
        p_values = [ranking.p_value(one, scores[0]) for one in scores[1:]]
        found += min(p_values) < 0.05
    assert found > stats.binom.ppf(0.999, 300, 0.05)


def test_a_true_difference_is_found():
    random = np.random.default_rng(2)
    streams = random.normal(0, 3, size=10)
    scores = {
        str(index): by_seed(streams - 2 * (index == 3) + 0.5 * random.normal(size=10))
        for index in range(4)
    }
    assert ranking.groups(scores)[-1] == ["3"]


def test_the_probability_of_improvement_counts_all_pairs():
    values, reference = np.array([1.0, 3, np.inf]), np.array([2.0, 3])
    expected = (0 + 0 + 1 + 0.5 + 1 + 1) / 6
    found = ranking.probability_of_improvement(values, reference)
    assert found == pytest.approx(expected)
    back = ranking.probability_of_improvement(reference, values)
    assert back == pytest.approx(1 - expected)
    # The statistic of Mann and Whitney, over the number of pairs.
    one, other = np.random.default_rng(0).normal(size=(2, 8))
    found = ranking.probability_of_improvement(one, other)
    assert found == pytest.approx(stats.mannwhitneyu(one, other).statistic / 64)

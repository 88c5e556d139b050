"""Methods compared: what is chosen, on which seeds, and how they are evaluated."""

from made_up_runs import TASKS, diverging, level, make_run
import numpy as np
import pytest

from experiments.reporting import comparison

# Levels of eight seeds, the streams, which all methods share; the first three choose.
STREAMS = np.array([0.0, 0.06, 0.02, 0.05, 0.01, 0.03, 0.08, 0.04])
JUDGING = STREAMS[3:]


def methods(**extra):
    """Known order: good (best setting 0.1), backprop, bad."""
    random = np.random.default_rng(0)

    def near(mean):
        return level(mean + STREAMS + random.normal(0, 0.001, STREAMS.size))

    return {
        "backprop": {0.0: near(0.5)},
        "good": {0.01: near(0.55), 0.1: near(0.6), 1.0: near(0.4)},
        "bad": {0.01: near(0.3), 0.1: near(0.35), 1.0: near(0.45)},
    } | extra


def compare(*runs, tuning_runs=(), tuning_seeds=3, reference="backprop"):
    return comparison.compare(runs, tuning_runs, tuning_seeds, reference, 0)


def verdict(compared, method, score="all_tasks"):
    return {one.method: one for one in compared.verdicts[score]}[method]


def test_the_best_setting_is_chosen_and_evaluated_on_the_other_seeds():
    made = methods()
    compared = compare(make_run(made, range(8)))
    chosen = {one.method: one.trial.setting for one in compared.choices}
    assert chosen == {
        "backprop": {},
        "good": {"weight_decay": 0.1},
        "bad": {"weight_decay": 1.0},
    }
    assert compared.tuning_seeds == [0, 1, 2]
    assert [one.method for one in compared.verdicts["all_tasks"]] == [
        *("good", "backprop", "bad")
    ]
    good = verdict(compared, "good")
    values, reference = made["good"][0.1][3:, 0], made["backprop"][0.0][3:, 0]
    assert good.mean == pytest.approx(values.mean())
    assert good.paired.difference == pytest.approx((values - reference).mean())
    assert good.paired.low < 0.1 < good.paired.high
    assert (good.num_seeds, good.num_lost, good.paired.won) == (5, 0, 1)
    assert good.paired.verdict == "better"
    bad = verdict(compared, "bad").paired
    assert (bad.verdict, bad.won) == ("worse", 0)
    assert verdict(compared, "backprop").paired[:4] == (0, 0, 0, 0.5)


def test_an_error_is_better_the_smaller_it_is():
    compared = compare(make_run(methods(), range(8), score="error"))
    chosen = {one.method: one.trial.setting for one in compared.choices}
    assert chosen["good"] == {"weight_decay": 1.0}
    assert [one.method for one in compared.verdicts["all_tasks"]] == [
        *("bad", "good", "backprop")
    ]
    assert verdict(compared, "bad").paired.verdict == "better"


def test_seeds_that_chose_never_evaluate():
    made = methods()
    before = compare(make_run(made, range(8)))
    for curves in (curve for one in made.values() for curve in one.values()):
        curves[:3] = 1 - (1 - curves[:3]) ** 2  # Keeps the order, changes all values.
    after = compare(make_run(made, range(8)))
    assert after.verdicts == before.verdicts
    assert after.choices[0].scores != before.choices[0].scores


def test_scores_are_all_tasks_the_last_tenth_and_what_is_lost_from_the_best():
    falling = np.linspace(0.9, 0.5, TASKS) + np.zeros((4, 1))
    falling[:, 0] = [0.8, 0.9, 0.9, 0.8]  # The second task is best of the mean.
    falling += np.array([0, 0.01, 0.02, 0.03])[:, None]
    run = make_run(
        {"backprop": {0.0: level([0.5] * 4)}, "l2": {0.0: falling}}, range(4)
    )
    compared = compare(run, tuning_seeds=0)
    last = falling[:, -2:].mean(axis=1)
    expected = {
        "all_tasks": falling.mean(),
        "last_tenth": last.mean(),
        "lost": (falling[:, 1] - last).mean(),
    }
    for score, mean in expected.items():
        assert verdict(compared, "l2", score).mean == pytest.approx(mean)
        assert verdict(compared, "backprop", score).mean in (0, 0.5)
    assert [one.method for one in compared.verdicts["lost"]] == ["backprop", "l2"]
    # Of errors, what is lost is a rise.
    run = make_run(
        {"backprop": {0.0: level([0.5] * 4)}, "l2": {0.0: 1 - falling}},
        range(4),
        score="error",
    )
    lost = verdict(compare(run, tuning_seeds=0), "l2", "lost").mean
    assert lost == pytest.approx(expected["lost"])


def test_a_lane_that_diverged_counts_as_lost_and_is_not_dropped():
    good = methods()["good"][0.1]
    made = methods(
        late={0.1: diverging(good, 4, 15), 1.0: level(0.5 + STREAMS)},
        early={0.1: good, 1.0: diverging(good + 0.1, 2, 0)},
    )
    compared = compare(make_run(made, range(8)))
    late = verdict(compared, "late")
    values = good[3:, 0].copy()
    values[1] *= 15 / TASKS  # Accuracy 0 in the other tasks.
    assert late.mean == pytest.approx(values.mean())
    assert (late.num_seeds, late.num_lost) == (5, 1)
    assert verdict(compared, "late", "last_tenth").mean == pytest.approx(
        good[[3, 5, 6, 7], 0].sum() / 5
    )
    lost = verdict(compared, "late", "lost")
    assert (lost.mean, lost.paired.won) == (pytest.approx(1 / 5), 0.4)
    # One of three tuning seeds lost costs a setting its lead.
    (early,) = [one for one in compared.choices if one.method == "early"]
    assert (early.trial.setting, early.num_lost) == ({"weight_decay": 0.1}, [0, 1])
    assert any("late 1 of 5" in warning for warning in compared.warnings)


def test_an_error_that_diverged_is_infinite_and_ranks_last():
    made = {
        "backprop": {0.0: level(0.5 + STREAMS)},
        "l2": {0.0: diverging(level(0.1 + STREAMS), 7, 19)},
        "adam": {
            0.1: diverging(level(0.1 + STREAMS), 0, 0),
            0.2: diverging(diverging(level(0.1 + STREAMS), 0, 0), 1, 5),
            0.3: diverging(level(0.2 + STREAMS), 1, 5),
        },
    }
    compared = compare(make_run(made, range(8), score="error"))
    order = [one.method for one in compared.verdicts["all_tasks"]]
    assert order == ["adam", "backprop", "l2"]
    l2 = verdict(compared, "l2")
    assert (l2.mean, l2.paired.difference, l2.paired.won) == (np.inf, np.inf, 0.8)
    assert l2.paired.verdict == "diverged"
    assert np.isnan([l2.paired.low, l2.paired.high]).all()
    # Of 0.11, 0.13, 0.15, 0.18 and infinity one is cut at each end.
    assert l2.interquartile_mean == pytest.approx((0.13 + 0.15 + 0.18) / 3)
    # All settings lost a tuning seed: the fewest, then the least error of the others.
    assert compared.choices[2].trial.setting == {"weight_decay": 0.1}


def test_points_that_only_other_cases_have_are_no_trials():
    run = make_run(methods(), range(8))
    assert run.dataset.sizes["point"] == 3
    assert [len(one.trials) for one in compare(run).choices] == [1, 3, 3]
    # But one at which all lanes diverged at once is.
    made = methods()
    made["bad"][0.1] = np.full_like(made["bad"][0.1], np.nan)
    compared = compare(make_run(made, range(8)))
    assert compared.choices[2].num_lost == [0, 3, 0]
    assert compared.choices[2].scores[1] == 0


def test_a_best_setting_at_the_edge_of_its_grid_is_marked():
    compared = compare(make_run(methods(), range(8)))
    assert [one.at_edge for one in compared.choices] == [[], [], ["weight_decay"]]
    assert any("edge of the grid: bad (" in warning for warning in compared.warnings)


def test_unequal_tuning_is_named():
    equal = {name: one for name, one in methods().items() if name != "backprop"}
    compared = compare(make_run(equal, range(8)), reference="good")
    assert not any("Unequal" in warning for warning in compared.warnings)
    compared = compare(make_run(methods(), range(8)))
    (warning,) = [one for one in compared.warnings if "Unequal" in one]
    assert "most methods tried 3 settings, but backprop 1." in warning
    assert comparison.usual_trials(compared.choices) == 3


@pytest.mark.parametrize(
    ("num_seeds", "tuning_seeds", "message"),
    [
        (4, 3, "^1 seed is left to evaluate backprop, .* at least 5"),
        (3, 3, "^No seed is left"),
        (8, 9, "--tuning_seeds=9, but only 8 seeds"),
        (8, 0, "good has 3 settings but no seeds .*--tuning_seeds=N"),
        (8, None, "good has 3 settings but no seeds"),
    ],
)
def test_too_few_seeds_are_refused(num_seeds, tuning_seeds, message):
    made = {
        name: {value: curves[:num_seeds] for value, curves in one.items()}
        for name, one in methods().items()
    }
    with pytest.raises(ValueError, match=message):
        compare(make_run(made, range(num_seeds)), tuning_seeds=tuning_seeds)


def test_few_seeds_are_warned_of():
    run = make_run(methods(), range(8))
    assert not any("evaluation seeds" in one for one in compare(run).warnings)
    few = compare(run, tuning_seeds=4).warnings
    assert any(one.startswith("Only 4 evaluation seeds") for one in few)
    single = compare(run, tuning_seeds=1).warnings
    assert any("on a single seed" in one for one in single)


def test_a_reference_that_was_not_run_is_named_and_alone_it_is_refused():
    run = make_run(methods(), range(8))
    pattern = "=l2 was not run; choose from backprop, good, bad"
    with pytest.raises(ValueError, match=pattern):
        compare(run, reference="l2")
    alone = make_run({"backprop": methods()["backprop"]}, range(8))
    with pytest.raises(ValueError, match="Only backprop was run"):
        compare(alone, tuning_seeds=0)

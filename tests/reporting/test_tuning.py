"""Searches compared: what is chosen, what it costs, and what is written of it."""

import io
import itertools

from made_up_runs import level, make_run, make_search
import numpy as np
import pandas as pd
import pytest
from test_comparison_output import read_tables

from experiments.reporting import comparison, comparison_output, files, plots, tuning
from experiments.reporting.trials import search_ranges

STREAMS = np.array([0.0, 0.06, 0.02])
FRESH = np.array([0.01, 0.05, 0.03, 0.0, 0.02, 0.07, 0.04, 0.06])
STEPS = np.array([0.001, 0.01, 0.03, 0.1, 0.005])
RATES = np.array([1e-3, 1e-5, 1e-2, 1e-4, 1e-6])
LOG_STEPS = {"step_size": ("log", (1e-3, 1e-1))}
LOG_RATES = {"replacement_rate": ("log", (1e-6, 1e-2))}


def searched(score="accuracy"):
    """A search in which trial 1 of backprop and trial 3 of continual are best."""
    random = np.random.default_rng(0)

    def levels(means):
        near = random.normal(0, 0.001, size=(len(means), STREAMS.size))
        return np.asarray(means)[:, None] + STREAMS + near

    methods = {
        "backprop": (
            *({"step_size": STEPS}, LOG_STEPS),
            levels([0.2, 0.5, 0.4, 0.1, 0.3]),
        ),
        "continual_backprop": (
            {"step_size": STEPS, "replacement_rate": RATES},
            LOG_STEPS | LOG_RATES,
            levels([0.3, 0.5, 0.4, 0.6, 0.2]),
        ),
    }
    return make_search(methods, range(3), score=score)


def evaluated(seeds=range(3, 11), better=0.1):
    """The run of the chosen settings, whose cases have them as fields."""
    noise = np.random.default_rng(1).normal(0, 0.003, size=(2, FRESH.size))
    curves = {
        "backprop": {0.0: level(0.5 + FRESH + noise[0])},
        "continual_backprop": {0.0: level(0.5 + better + FRESH + noise[1])},
    }
    cases = {
        "backprop": {"step_size": 0.01},
        "continual_backprop": {"step_size": 0.1, "replacement_rate": 1e-4},
    }
    return make_run(curves, seeds, "evaluation", cases=cases, step_size=0.5)


def compare(search, evaluation):
    return comparison.compare([evaluation], [search], None, "backprop", 0)


def test_the_planted_best_is_chosen_and_judged_on_fresh_seeds():
    compared = compare(searched(), evaluated())
    chosen = {one.method: one.trial.setting for one in compared.choices}
    assert chosen == {
        "backprop": {"step_size": 0.01},
        "continual_backprop": {"step_size": 0.1, "replacement_rate": 1e-4},
    }
    assert compared.tuning_seeds == [0, 1, 2]
    assert compared.evaluated["backprop"].seeds == list(range(3, 11))
    assert not compared.warnings[1:]  # The edge is named, see below.
    first, second = compared.verdicts["all_tasks"]
    assert (first.method, first.paired.verdict) == ("continual_backprop", "better")
    assert first.paired.low < 0.1 < first.paired.high
    assert first.p_value < 1e-6
    assert second.p_value is None
    assert compared.groups == [["continual_backprop"], ["backprop"]]


def test_seeds_of_the_search_never_judge():
    """Nor do seeds that both runs have."""
    compared = compare(searched(), evaluated(range(1, 9)))
    assert compared.evaluated["backprop"].seeds == list(range(3, 9))
    other = searched()
    other.dataset["accuracy"] **= 2  # Keeps the order, changes all values.
    again = compare(other, evaluated(range(1, 9)))
    assert again.verdicts == compared.verdicts


def test_equal_methods_are_undecided_and_in_one_group():
    compared = compare(searched(), evaluated(better=0.0))
    verdicts = compared.verdicts["all_tasks"]
    assert {one.paired.verdict for one in verdicts} == {"undecided"}
    assert len(compared.groups) == 1
    (other,) = [one for one in verdicts if one.method != "backprop"]
    assert 0.3 < other.improvement < 0.7


def test_verdicts_are_corrected_for_the_number_of_methods():
    """A method that just differs alone does not among eleven."""
    noise = np.array([-1, 1, -1, 1, -0.5, 0.5, 0, 0]) * 0.001
    methods = {"backprop": 0 * noise, "close": noise + 0.001}
    others = {f"other_{index}": noise[::-1] for index in range(10)}
    trials = {"step_size": STEPS[:2]}, LOG_STEPS
    for shown, verdict in ((methods, "better"), (methods | others, "undecided")):
        levels = {
            name: (*trials, np.tile([0.5 + FRESH + one, 0.2 + FRESH], 2))
            for name, one in shown.items()
        }
        run = make_search(levels, range(16))
        compared = comparison.compare([run], [], 8, "backprop", 0)
        found = {one.method: one for one in compared.verdicts["all_tasks"]}
        assert found["close"].paired.verdict == verdict
        assert found["close"].paired.low > 0  # The interval is not corrected.


def test_an_error_improves_downwards_and_an_infinite_one_is_tested_by_signs():
    levels = 0.5 + np.concatenate([STREAMS, FRESH])
    lost = np.where(np.arange(11) == 5, np.nan, levels + 0.1)
    trials = {"step_size": STEPS[:2]}, LOG_STEPS
    run = make_search(
        {
            "backprop": (*trials, [levels, levels + 1]),
            "good": (*trials, [levels + 1, levels - 0.1]),
            "lost": (*trials, [lost, levels + 1]),
        },
        *(range(11), "run", "error"),
    )
    compared = comparison.compare([run], [], 3, "backprop", 0)
    good, _, lost = compared.verdicts["all_tasks"]
    assert (good.method, good.improvement > 0.9) == ("good", True)
    assert good.paired.verdict == "better"
    # Eight of eight seeds are worse, which signs show in one of 128 cases.
    assert (lost.method, lost.paired.verdict) == ("lost", "worse")
    assert lost.p_value == pytest.approx(1 / 128)
    assert lost.improvement < 0.1
    assert compared.groups == [["good"], ["backprop"], ["lost"]]


def test_the_outer_tenth_of_a_range_is_marked():
    """On the scale of the range: a tenth of two decades is a factor of 1.58."""
    for value, at_edge in (
        *((0.0015, True), (0.0017, False)),
        *((0.062, False), (0.065, True)),
    ):
        steps = np.array([value, 0.02, 0.01])
        methods = {"backprop": ({"step_size": steps}, LOG_STEPS, np.eye(3))}
        methods["backprop"][2][0] = 2
        (choice,), warnings = comparison.choose_settings(
            [make_search(methods, range(3))], None
        )
        assert choice.trial.setting == {"step_size": value}
        assert (choice.at_edge == ["step_size"]) == at_edge
        assert any("in the outer tenth of its range" in one for one in warnings) == (
            at_edge
        )


def test_of_a_choice_the_lowest_and_the_highest_value_are_marked():
    ranges = {"redo_every": ("choice", (10, 20, 30))}
    for best, at_edge in ((0, True), (1, False), (2, True)):
        levels = np.tile(np.arange(3)[:, None] == best, (1, 3))
        methods = {"redo": ({"redo_every": [10, 20, 30]}, ranges, levels)}
        search = make_search(methods, range(3))
        (choice,), _ = comparison.choose_settings([search], None)
        assert (choice.at_edge == ["redo_every"]) == at_edge


def test_ranges_of_several_searches_are_joined():
    wide = {"step_size": ("log", (1e-2, 1.0))}
    runs = [
        make_search({"redo": ({"step_size": STEPS}, ranges, np.zeros((5, 2)))}, [0, 1])
        for ranges in (LOG_STEPS, wide)
    ]
    assert search_ranges(runs) == {"redo": {"step_size": ("log", (1e-3, 1.0))}}


def test_the_expected_best_is_that_of_all_subsets():
    values = np.array([0.9, 0.95, 0.2, 0.5, 0.1])  # By rank; not in order themselves.
    curve = tuning.expected_best(values)
    for number in range(1, 6):
        best = [
            values[min(subset)] for subset in itertools.combinations(range(5), number)
        ]
        assert curve[number - 1] == pytest.approx(np.mean(best))
    with_lost = tuning.expected_best(np.array([0.1, 0.2, np.inf, np.inf]))
    np.testing.assert_allclose(with_lost[2:], [0.125, 0.1])
    assert np.isinf(with_lost[:2]).all()


def test_a_seed_scores_what_the_others_choose():
    levels = np.array([[0.9, 0.1, 0.1], [0.2, 0.7, 0.5]])
    methods = {"redo": ({"step_size": STEPS[:2]}, LOG_STEPS, levels)}
    (choice,), _ = comparison.choose_settings([make_search(methods, range(3))], None)
    curves = tuning.cost_curves(choice, [0, 1, 2])
    # Seeds 1 and 2 choose trial 1; seed 0 and any other choose trial 0.
    np.testing.assert_allclose(curves[:, 1], [0.2, 0.1, 0.1])
    np.testing.assert_allclose(curves[:, 0], levels.mean(axis=0))
    np.testing.assert_allclose(tuning.cost_curves(choice, [1]), [[0.4, 0.7]])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open."""
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
    return kept


@pytest.fixture(scope="module")
def compared():
    return compare(searched(), evaluated())


def test_tables_of_a_search_say_the_same_as_its_csv(compared):
    text = comparison_output.markdown(compared)
    tables = read_tables(text)
    assert list(tables) == [
        "Ranking, accuracy %",
        "Mean over all tasks, accuracy %: more is better",
        "Last tenth of the tasks, accuracy %: more is better",
        "Lost from the best task to the last tenth, accuracy %: less is better",
        "Hyperparameters",
        "Cost of tuning, accuracy %",
    ]
    ranks = tables["Ranking, accuracy %"]
    assert list(ranks["method"]) == ["continual_backprop", "backprop"]
    assert list(ranks["group"]) == ["a", "b"]
    assert list(ranks["verdict"]) == ["better", "reference"]
    assert ranks["setting"][0] == "step_size 0.1 †, replacement_rate 0.0001"
    rows = pd.read_csv(io.StringIO(comparison_output.verdicts_csv(compared)))
    row = rows[(rows.score == "all_tasks") & (rows.method != "backprop")].iloc[0]
    assert row.p_value == pytest.approx(compared.verdicts["all_tasks"][0].p_value)
    (shown, _) = tables["Mean over all tasks, accuracy %: more is better"][
        ["P(improvement)", "p"]
    ].values
    assert list(shown) == [f"{row.improvement:.2f}", "< 0.001"]
    tried = tables["Hyperparameters"]["tried"]
    assert tried[1] == "step_size 0.001 to 0.1; replacement_rate 1e-06 to 0.01"
    assert "corrected for the number of methods by Holm's method" in text
    assert "They are not corrected for the number" not in text
    costs = pd.read_csv(io.StringIO(comparison_output.costs_csv(compared)))
    means = costs.groupby(["method", "trials"]).expected_best.mean()
    cells = tables["Cost of tuning, accuracy %"].set_index("method")
    by_method = ranks.set_index("method")
    np.testing.assert_array_equal(by_method["best of 4"], cells["best of 4"][::-1])
    for score in ("all_tasks", "last_tenth", "lost"):
        found = rows[(rows.score == score) & (rows.method != "backprop")].iloc[0]
        numbers = (100 * found[end] for end in ("difference", "low", "high"))
        wanted = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*numbers)
        shown = by_method[score.replace("_", " ")]
        assert shown["continual_backprop"] == wanted
        assert not shown["backprop"]
    assert list(cells) == ["best of 1", "best of 2", "best of 4", "best of 5"]
    for method in cells.index:
        for number in (1, 2, 4, 5):
            shown = float(cells.loc[method, f"best of {number}"])
            assert shown == pytest.approx(100 * means[method, number], abs=0.006)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((0.0006123, "0.00061"), (1e-6, "1e-06"), (1000, "1000"), (0.9, "0.9")),
        *((0.99924, "0.99924"), (0.9876, "0.988"), (1.0, "1"), (0, "0")),
    ],
)
def test_the_ranking_rounds_decay_rates_by_their_distance_from_one(value, written):
    assert comparison_output.two_digits(value) == written


def test_a_comparison_of_sweeps_has_no_ranking():
    curves = {"backprop": {0.1: level(FRESH)}, "l2": {0.1: level(FRESH + 0.1)}}
    run = make_run(curves, range(8))
    swept = comparison.compare([run], [], 0, "backprop", 0)
    assert swept.groups is None
    assert swept.verdicts["all_tasks"][0].p_value is None
    text = comparison_output.markdown(swept)
    assert "Ranking" not in text and "P(improvement)" not in text
    assert "p_value" not in comparison_output.verdicts_csv(swept)


def test_flags_of_a_search_set_the_fields(compared):
    assert comparison_output.flags(compared.choices) == [
        "--config.cases.backprop.step_size=0.01",
        "--config.cases.continual_backprop.step_size=0.1",
        "--config.cases.continual_backprop.replacement_rate=0.0001",
    ]


def test_groups_have_letters_without_end():
    names = [comparison_output._letter(number) for number in (0, 25, 26, 53)]
    assert names == ["a", "z", "a1", "b2"]


def test_the_cost_is_drawn_for_each_method(drawn, tmp_path, compared):
    tuning.draw_cost(compared.choices, compared.tuning_seeds, tmp_path)
    lines = {line.get_label(): line for line in drawn[0].axes[0].lines}
    assert set(lines) == {"backprop", "continual backprop"}
    curve = tuning.cost_curves(compared.choices[0], [0, 1, 2]).mean(axis=0)
    np.testing.assert_allclose(lines["backprop"].get_ydata(), 100 * curve)
    np.testing.assert_array_equal(lines["backprop"].get_xdata(), [1, 2, 3, 4, 5])


def test_each_hyperparameter_of_a_method_has_a_panel(drawn, tmp_path):
    levels = np.tile([[0.2], [0.3], [np.nan]], (1, 3))
    decay = {"hare_decay": np.array([0.99, 0.999, 0.9999])}
    ranges = {"hare_decay": ("log_complement", (0.9, 0.9999))}
    methods = {
        "backprop": ({"step_size": STEPS[:3]}, LOG_STEPS, levels),
        "hare_and_tortoise": (decay, ranges, levels[[1, 0, 2]]),
    }
    search = make_search(methods, range(3), score="error")
    choices, _ = comparison.choose_settings([search], None)
    tuning.draw_sensitivity(choices, tmp_path)
    first, second = drawn[0].axes
    assert (first.get_title(), first.get_xlabel()) == ("backprop", "step size")
    dots, ring, crosses = first.lines
    np.testing.assert_allclose(dots.get_xdata(), STEPS[:3])
    np.testing.assert_allclose(dots.get_ydata(), [0.2, 0.3, np.nan])
    np.testing.assert_allclose([*ring.get_xdata(), *ring.get_ydata()], [STEPS[0], 0.2])
    assert list(crosses.get_xdata()) == [STEPS[2]]
    assert second.get_xlabel() == "1 - hare decay"
    np.testing.assert_allclose(second.lines[0].get_xdata(), [0.01, 0.001, 0.0001])
    assert second.get_xscale() == "log"


def test_all_files_are_written(tmp_path, compared):
    paths = comparison_output.write(compared, tmp_path)
    names = (*files.COMPARISON_FILES, *files.SEARCH_FILES)
    assert [path.name for path in paths] == list(names)
    for path in paths:
        assert path.stat().st_size

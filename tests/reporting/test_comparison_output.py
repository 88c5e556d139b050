"""What is written of a comparison: Markdown, CSV and figures."""

import io

from made_up_runs import diverging, level, make_run
import numpy as np
import pandas as pd
import pytest

from experiments.reporting import comparison, comparison_output, plots
from experiments.reporting.comparison_output import (
    choice_table,
    flags,
    markdown,
    trials_csv,
    verdicts_csv,
)

LEVELS = np.array([0.0, 0.06, 0.02, 0.05, 0.01, 0.03, 0.04, 0.02])


def compared(score="accuracy", **extra):
    methods = {
        "backprop": {0.0: level(0.5 + LEVELS)},
        "l2": {0.1: level(0.55 + LEVELS), 0.2: level(0.6 + LEVELS * 1.01)},
        "adam": {0.1: level(0.4 + LEVELS), 0.2: diverging(level(0.3 + LEVELS), 4, 10)},
    } | extra
    run = make_run(methods, range(8), score=score)
    return comparison.compare([run], (), 2, "backprop", 0)


def read_tables(text):
    """The tables of a Markdown text by the heading above them."""
    tables = {}
    for part in text.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines
        ]
        tables[part.splitlines()[0]] = pd.DataFrame(cells[2:], columns=cells[0])
    return tables


def test_markdown_and_csv_say_the_same():
    outcome = compared()
    tables = read_tables(markdown(outcome))
    assert list(tables) == [
        "Mean over all tasks, accuracy %: more is better",
        "Last tenth of the tasks, accuracy %: more is better",
        "Lost from the best task to the last tenth, accuracy %: less is better",
        "Hyperparameters",
    ]
    rows = pd.read_csv(io.StringIO(verdicts_csv(outcome)), keep_default_na=False)
    assert len(rows) == 9
    for (_, written), table in zip(
        rows.groupby("score", sort=False), tables.values(), strict=False
    ):
        assert list(table["method"]) == list(written["method"])
        for column in ("mean", "interquartile_mean"):
            shown = table[column.replace("_", " ")].astype(float)
            np.testing.assert_allclose(shown, 100 * written[column], atol=0.005)
        others = (written["method"] != "backprop").values
        np.testing.assert_allclose(
            table["difference"][others].astype(float),
            100 * written["difference"][others],
            atol=0.005,
        )
        for shown, low, high in zip(
            table["95 % interval"], written["low"], written["high"], strict=True
        ):
            if shown:
                ends = [float(end) for end in shown.split(" to ")]
                np.testing.assert_allclose(ends, [100 * low, 100 * high], atol=0.005)
        assert list(table["verdict"][others]) == list(written["verdict"][others])


def test_the_csv_holds_the_verdicts_to_nine_digits():
    outcome = compared()
    rows = pd.read_csv(io.StringIO(verdicts_csv(outcome)), keep_default_na=False)
    row = rows[(rows.score == "all_tasks") & (rows.method == "l2")].iloc[0]
    verdict = outcome.verdicts["all_tasks"][0]
    assert row["hyperparameters"] == "weight_decay 0.2"
    assert (row["trials"], row["at_edge"], row["seeds"]) == (2, "weight_decay", 6)
    for field in ("difference", "low", "high", "won"):
        assert row[field] == pytest.approx(getattr(verdict.paired, field), rel=1e-8)
    assert (row["verdict"], row["reference"]) == ("better", "backprop")
    trials = pd.read_csv(
        io.StringIO(trials_csv(outcome.choices)), keep_default_na=False
    )
    assert list(trials["method"]) == ["backprop", "l2", "l2", "adam", "adam"]
    assert list(trials["chosen"]) == [True, False, True, True, False]
    np.testing.assert_allclose(trials["mean"][1:3], [0.58, 0.6 + 0.03 * 1.01])


def test_the_text_says_who_evaluated_what_was_marked_and_what_is_doubtful():
    text = markdown(compared())
    assert "Settings are chosen on 2 seeds (0, 1) and 20 tasks." in text
    assert "Methods are evaluated on 6 seeds (2 to 7) and 20 tasks." in text
    assert "| weight_decay 0.2 † |" in text
    assert "* Unequal tuning: most methods tried 2 settings, but backprop 1." in text
    settings = read_tables(text)["Hyperparameters"]
    assert list(settings["trials"]) == ["1*", "2", "2"]
    assert list(settings["tried"]) == ["", *["weight_decay 0.1, 0.2"] * 2]
    alone = comparison.compare(
        [make_run({m: {0: level(LEVELS)} for m in ("backprop", "l2")}, range(8))],
        *((), None, "backprop", 0),
    )
    assert "Settings are chosen on no seeds." in markdown(alone)


def test_errors_that_diverged_are_written_as_infinite():
    text = markdown(compared("error"))
    table = read_tables(text)["Mean over all tasks, squared error: less is better"]
    # Of 0.32, 0.32, 0.33, 0.34, 0.35 and infinity one is cut at each end.
    assert list(table.iloc[-1]) == [
        *("adam", "weight_decay 0.2 †", "6, 1 diverged", "inf", "0.335", "+inf", "-"),
        *("83 %", "diverged"),
    ]
    assert "* Seeds that diverged: adam 1 of 6. From the task in which it" in text


def test_flags_leave_a_run_the_chosen_settings():
    choices = compared().choices
    assert flags(choices) == [
        "--config.cases.l2.sweep.weight_decay='(0.2,)'",
        "--config.cases.adam.sweep.weight_decay='(0.1,)'",
    ]
    assert "weight_decay 0.2 †" in choice_table(choices)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open."""
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
    return kept


def test_differences_are_drawn_in_order_with_their_intervals(drawn, tmp_path):
    outcome = compared("error", better={0.1: level(0.2 + LEVELS)})
    comparison_output.draw_differences(outcome, tmp_path)
    first = drawn[0].axes[0]
    names = [label.get_text().strip() for label in first.get_yticklabels()]
    assert names == ["better", "L2 †", "Adam †"]
    pairs = {one.method: one.paired for one in outcome.verdicts["all_tasks"]}
    interval, point = first.lines[2:4]
    np.testing.assert_allclose(interval.get_xdata(), pairs["l2"][1:3])
    np.testing.assert_allclose(point.get_xdata(), pairs["l2"].difference)
    assert first.lines[4].get_marker() == ">"  # Infinite, at the right border.
    assert "← better" in first.get_xlabel()


def test_curves_of_the_chosen_settings_count_what_diverged(drawn, tmp_path):
    broken = {0.1: diverging(level(0.7 + LEVELS), 4, 10)}
    comparison_output.draw_curves(compared(broken=broken), tmp_path)
    accuracy, dead_units = drawn[0].axes
    assert [line.get_label() for line in accuracy.lines] == [
        *("backprop", "L2", "Adam", "broken")
    ]
    curve = accuracy.lines[3].get_ydata()
    rest = 0.7 + np.delete(LEVELS[2:], 2)
    np.testing.assert_allclose(
        curve[9:11], 100 * np.array([rest.sum() + 0.71, rest.sum()]) / 6
    )
    np.testing.assert_allclose(dead_units.lines[0].get_ydata(), 10)
    comparison_output.draw_curves(compared("error", broken=broken), tmp_path)
    assert (
        len(drawn[1].axes[0].lines[3].get_ydata()) == 10
    )  # Up to the first that does.


def test_both_figures_are_written(tmp_path):
    outcome = compared()
    for draw in (comparison_output.draw_differences, comparison_output.draw_curves):
        path = draw(outcome, tmp_path / "new" / "figure.png")
        assert path.read_bytes().startswith(b"\x89PNG")

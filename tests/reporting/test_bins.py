"""Scores in bins of tasks: their averages, their table and their figure."""

import json

import numpy as np
import pytest
from tiny_runs import make_case

from experiments.reporting import plots, run_results, statistics, tables


def test_bins_average_whole_tasks_and_the_last_has_what_is_left():
    curves = np.array([[1.0, 3.0, 5.0, 7.0, 10.0], [0.0, np.nan, 1.0, 3.0, 4.0]])
    np.testing.assert_array_equal(
        statistics.in_bins(curves, 2), [[2.0, 6.0, 10.0], [np.nan, 2.0, 4.0]]
    )
    np.testing.assert_array_equal(statistics.in_bins(curves, 1), curves)
    np.testing.assert_allclose(statistics.in_bins(curves, 9)[0], [5.2])


def make_results(size, *names, num_tasks=25):
    """Two step sizes x two seeds; lane l has accuracy 0.1 l + 0.01 x task."""
    fields = {"conv_channels": [3], "hidden_layers": 1}
    linear = {"conv_channels": [], "hidden_layers": 0}
    cases = {name: linear if name == "linear" else fields for name in names}
    config = {"tasks_per_bin": size, "cases": cases}
    return run_results.join_cases(
        [make_case(name, num_tasks) for name in names], {"config": json.dumps(config)}
    )


def test_the_table_is_of_bins():
    """The second step size: lanes 2 and 3, tasks 0 to 9, 10 to 19 and 20 to 24."""
    lines = tables.summary_table(make_results(10, "backprop")).splitlines()
    header, line = (
        [cell.strip() for cell in one.strip("|").split("|")]
        for one in (lines[0], lines[-1])
    )
    cells = dict(zip(header, line, strict=True))
    # Two seeds that differ by 10 points: half of 12.706 x 10.
    assert cells["first 10 tasks, accuracy %"] == "29.50 ± 63.53"
    assert cells["best 10 tasks, accuracy %"] == "47.00 ± 63.53 (tasks 20 to 24)"
    assert cells["last 10 tasks, accuracy %"] == "47.00 ± 63.53"
    alone = run_results.join_cases([make_case()], {})
    assert "first accuracy %" in tables.summary_table(alone)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open, by file name."""
    kept = {}

    def keep(figure, path):
        kept[path.name] = figure
        return path

    monkeypatch.setattr(plots, "save", keep)
    return kept


def test_the_figure_shows_the_first_tasks_and_all_in_bins(drawn, tmp_path):
    dataset = make_results(10, "backprop", "continual_backprop", "linear")
    assert len(plots.draw_run(dataset, tmp_path)) == 2
    first, all_tasks = drawn["bins.png"].axes
    assert (first.get_title(), all_tasks.get_title()) == (
        "first 10 tasks",
        "all tasks, in bins of 10",
    )
    # Two methods and the linear model, each at two step sizes.
    lines = {line.get_label(): line for line in first.lines[:4]}
    assert [line.get_label() for line in first.lines[4:]] == ["linear", "linear"]
    assert {line.get_linestyle() for line in first.lines[4:]} == {"--"}
    np.testing.assert_array_equal(
        lines["backprop, step size 0.2"].get_xdata(), range(10)
    )
    np.testing.assert_allclose(
        lines["backprop, step size 0.2"].get_ydata(), 25 + np.arange(10)
    )
    in_bins = {line.get_label(): line for line in all_tasks.lines[:4]}
    line = in_bins["backprop, step size 0.2"]
    np.testing.assert_allclose(line.get_xdata(), [4.5, 14.5, 22])
    np.testing.assert_allclose(line.get_ydata(), [29.5, 39.5, 47])
    assert first.get_ylim()[1] <= 101
    (legend,) = first.figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels.count("linear") == 1 and len(labels) == 5
    assert legend.get_window_extent().width <= first.figure.bbox.width


def test_tasks_are_whole_numbers_on_the_axes(drawn, tmp_path):
    plots.draw_run(make_results(2, "backprop", "linear", num_tasks=4), tmp_path)
    for axis in drawn["bins.png"].axes:
        ticks = axis.get_xticks()
        np.testing.assert_array_equal(ticks, ticks.round())


def test_many_methods_have_rows_and_the_linear_model_is_in_all(drawn, tmp_path):
    names = ("backprop", "l2", "dropout", "redo", "fire", "linear")
    plots.draw_run(make_results(5, *names, num_tasks=6), tmp_path)
    axes = drawn["bins.png"].axes
    assert len(axes) > 4
    for axis in axes:
        assert "linear" in [line.get_label() for line in axis.lines]


def test_a_run_of_linear_models_only_is_drawn_as_any_other(drawn, tmp_path):
    plots.draw_run(make_results(5, "linear"), tmp_path)
    labels = [line.get_label() for line in drawn["bins.png"].axes[0].lines]
    assert labels == ["linear, step size 0.1", "linear, step size 0.2"]


def test_what_is_measured_by_epoch_has_a_dimension_of_its_own():
    accuracy = np.arange(12.0).reshape(2, 2, 3) / 12
    sizes = {"num_weights": [4], "num_units": [0], "num_features": [0]}
    lanes = run_results.case_dataset(
        "backprop",
        {"seed": np.array([5, 6])},
        ["head"],
        {"accuracy": accuracy[..., -1], "accuracy_by_epoch": accuracy},
        sizes,
        examples_per_task=8,
        steps_per_task=2,
        steps_per_second=1.0,
        lanes_per_block=1,
    )
    dataset = run_results.join_cases([lanes], {})
    assert dataset.accuracy_by_epoch.dims == ("case", "seed", "task", "epoch")
    assert run_results.swept_names(dataset) == []
    lines = run_results.tidy_csv(dataset).splitlines()
    assert lines[0] == "case,seed,task,epoch,layer,variable,value"
    assert "backprop,6,1,0,,accuracy_by_epoch,0.75" in lines


def test_the_last_phase_is_drawn_without_its_first_tenth(drawn, tmp_path):
    """Of 25 tasks, the last phase has 20; its first two are left out."""
    dataset = run_results.join_cases([make_case(num_tasks=25)], {})
    assert len(plots.draw_run(dataset, tmp_path)) == 1
    config = {"phase_tasks": [2, 3], "cases": {}}
    dataset = dataset.assign_attrs(config=json.dumps(config))
    assert len(plots.draw_run(dataset, tmp_path)) == 2
    for line in drawn["last_phase.png"].axes[0].lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(7, 25))
    config["phase_tasks"] = [25]
    unfinished = dataset.assign_attrs(config=json.dumps(config))
    assert len(plots.draw_run(unfinished, tmp_path)) == 1

"""Figures of runs: what is drawn, read from the axes themselves."""

import json

import numpy as np
import pytest
from tiny_runs import make_case

from experiments import figures
from experiments.reporting import plots, run_results
from experiments.reporting.styles import method_style


def make_results(**errors):
    """Results of two step sizes x two seeds; a seed adds 0.1, a bin 0.01."""
    fields = {
        "backprop_relu": {"activation": "relu", "hidden_layers": 1},
        "continual_backprop_relu": {"activation": "relu", "hidden_layers": 1},
        "tanh": {"activation": "tanh", "hidden_layers": 1},
        "linear": {"activation": "relu", "hidden_layers": 0},
    }
    coordinates = {"step_size": np.array([0.1, 0.2]), "seed": np.array([0, 1])}
    offsets = np.array([0.0, 0.1, 0.5, 0.6])[:, None] + 0.01 * np.arange(3)
    made = [
        run_results.case_dataset(
            name,
            coordinates,
            ("dense_0", "head"),
            {"error": offsets + error},
            {"num_weights": [100, 5], "num_units": [5, 0]},
            examples_per_task=40_000,
            steps_per_task=40_000,
            steps_per_second=1.0,
            lanes_per_block=4,
        )
        for name, error in errors.items()
    ]
    config = {
        "activation": "relu",
        "hidden_layers": 1,
        "cases": {name: fields[name] for name in errors},
    }
    return run_results.join_cases(made, {"config": json.dumps(config)})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return path

    monkeypatch.setattr(plots, "save", keep)
    return kept


def test_one_panel_per_activation_and_the_best_linear_model_dashed(drawn, tmp_path):
    dataset = make_results(backprop_relu=1, continual_backprop_relu=2, tanh=3, linear=4)
    plots.draw_errors(dataset, tmp_path)
    relu, tanh = drawn[0].axes
    assert [relu.get_title(), tanh.get_title()] == ["relu", "tanh"]
    assert [line.get_label() for line in relu.lines] == [
        *("backprop relu, step size 0.1", "backprop relu, step size 0.2"),
        "continual backprop relu, step size 0.1",
        "continual backprop relu, step size 0.2",
        "linear",
    ]
    assert [line.get_label() for line in tanh.lines] == [
        *("step size 0.1", "step size 0.2", "linear")
    ]
    for axis in (relu, tanh):
        linear = axis.lines[-1]
        assert linear.get_linestyle() == "--"
        np.testing.assert_allclose(linear.get_ydata(), [4.05, 4.06, 4.07])
    np.testing.assert_allclose(tanh.lines[1].get_ydata(), [3.55, 3.56, 3.57])
    np.testing.assert_allclose(tanh.lines[1].get_xdata(), [0.04, 0.08, 0.12])
    # Two seeds 0.1 apart: the standard error of their mean is 0.05.
    low, high = tanh.collections[1].get_paths()[0].get_extents().get_points()[:, 1]
    np.testing.assert_allclose([low, high], [3.50, 3.62], rtol=1e-6)


def test_a_linear_model_alone_has_its_panel_and_nothing_finite_no_figure(
    drawn, tmp_path
):
    dataset = make_results(linear=1)
    plots.draw_errors(dataset, tmp_path)
    (axis,) = drawn[0].axes
    assert axis.get_title() == "linear"
    assert len(axis.lines) == 2
    dataset["error"] = dataset.error * np.nan
    assert plots.draw_errors(dataset, tmp_path) == []


def test_a_run_of_a_regression_is_drawn_as_errors_also_with_diverged_lanes(tmp_path):
    dataset = make_results(tanh=1, linear=2)
    dataset["error"].loc[{"case": "tanh", "step_size": 0.1}] = np.nan
    dataset["error"].loc[{"case": "tanh", "step_size": 0.2, "seed": 1}] = np.nan
    (path,) = plots.draw_run(dataset, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_accuracy_and_measures_are_drawn_against_tasks(drawn, tmp_path):
    plots.draw(run_results.join_cases([make_case()], {}), tmp_path)
    accuracy, magnitude = drawn[0].axes
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert [line.get_label() for line in accuracy.lines] == [
        "backprop, step size 0.1",
        "backprop, step size 0.2",
    ]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [25, 26, 27])
    np.testing.assert_allclose(magnitude.lines[0].get_ydata(), 1.25)
    # Two seeds 10 points apart: 12.706 times their standard error of 5, from 0 on.
    band = accuracy.collections[1].get_paths()[0].get_extents().get_points()[:, 1]
    np.testing.assert_allclose(band, [0, 27 + 63.53], atol=0.01)


def test_nothing_is_drawn_without_values(tmp_path):
    dataset = run_results.join_cases([make_case()], {})
    assert plots.draw(dataset * np.nan, tmp_path) == []
    (path,) = plots.draw(dataset, tmp_path / "figures")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_results_is_named_and_nothing_is_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        figures._main(["figures", str(tmp_path / "nowhere")])
    assert error.value.code == 1
    assert "nowhere does not exist: pass the folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_panels_share_their_scale_and_one_legend_if_it_holds_for_all(drawn, tmp_path):
    plots.draw_errors(make_results(backprop_relu=1, tanh=5), tmp_path)
    relu, tanh = drawn[0].axes
    assert relu.get_ylim() == tanh.get_ylim()
    assert relu.get_legend() is tanh.get_legend() is None
    (legend,) = drawn[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["step size 0.1", "step size 0.2"]
    both = make_results(backprop_relu=1, continual_backprop_relu=2, tanh=5)
    plots.draw_errors(both, tmp_path)
    assert all(axis.get_legend() for axis in drawn[1].axes)
    assert not drawn[1].legends


def make_methods(*names, **coordinates):
    """Accuracy and effective rank of methods with layers of 10 and 20 units."""
    lanes = int(np.prod([len(values) for values in coordinates.values()])) * 2
    cases = [
        run_results.case_dataset(
            name,
            coordinates | {"seed": np.array([0, 1])},
            ("dense_0", "dense_1", "head"),
            {
                "accuracy": np.full((lanes, 3), 0.5),
                "effective_rank": np.tile([2.0, 4.0, np.nan], (lanes, 3, 1)),
            },
            {
                "num_weights": [9, 9, 9],
                "num_units": [10, 20, 0],
                "num_features": [10, 20, 0],
            },
            examples_per_task=5,
            steps_per_task=5,
            steps_per_second=1.0,
            lanes_per_block=1,
        )
        for name in names
    ]
    return run_results.join_cases(cases, {})


def labels_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_many_methods_are_drawn_by_family_with_the_references_in_each(drawn, tmp_path):
    methods = ("l2", "dropout", "redo", "fire", "layer_norm", "full_reset")
    names = ("backprop", "continual_backprop", *methods, "my_own")
    plots.draw(make_methods(*names), tmp_path)
    axes = drawn[0].axes
    assert len(axes) == 6 * 2
    assert [labels_of(axis) for axis in axes[1::2]] == [
        ["backprop", "continual backprop", *row]
        for row in (
            *(["L2", "dropout"], ["ReDo"], ["layer norm"], ["FIRE"]),
            *(["full reset"], ["my own"]),
        )
    ]
    (rank,) = {tuple(line.get_ydata()) for line in axes[1].lines}
    assert rank == (20.0, 20.0, 20.0)  # The mean of 2 of 10 and 4 of 20, in percent.


def test_few_methods_with_many_settings_have_a_row_each(drawn, tmp_path):
    dataset = make_methods("backprop", "l2", weight_decay=np.arange(5) / 10)
    # A point of the grid at which one case was not run.
    dataset["examples"] = dataset.examples.where(
        (dataset.case == "l2") | (dataset.weight_decay < 0.4)
    )
    plots.draw(dataset, tmp_path)
    backprop, l2 = drawn[0].axes[1::2]
    assert labels_of(backprop) == [f"weight decay {v}" for v in ("0", 0.1, 0.2, 0.3)]
    assert len(labels_of(l2)) == 5
    looks = {(line.get_color(), line.get_linestyle()) for line in l2.lines}
    assert len(looks) == 5


def test_lines_far_above_the_others_leave_the_panel():
    _, axes = plots.subplots(1, 2, sharey="row")
    for axis, top in ((axes[0, 0], 2.0), (axes[0, 0], 4.0), (axes[0, 1], 41.0)):
        axis.plot([0, 1], [1.0, top])
    plots.cut_outliers(axes[0])
    limits = [axis.get_ylim() for axis in axes[0]]
    np.testing.assert_allclose(limits, [[0.85, 4.15]] * 2)


def test_lines_of_the_same_order_of_magnitude_all_stay_in_the_panel():
    _, axes = plots.subplots(1, 1)
    for top in (2.0, 4.0, 39.0):
        axes[0, 0].plot([0, 1], [1.0, top])
    plots.cut_outliers(axes[0])
    assert axes[0, 0].get_ylim()[1] > 39


def test_bands_end_where_values_can_not_be():
    _, axes = plots.subplots(1, 1)
    values = np.array([[0.0, 90.0, 50.0], [10.0, 100.0, 50.0]])
    plots.draw_curves(
        axes[0, 0], np.arange(3), values, method_style("backprop"), highest=100
    )
    (band,) = axes[0, 0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0, 100)

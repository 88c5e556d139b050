"""Lanes of a run, and the data set and files of them; cases with own sweeps."""

import io

import numpy as np
import pandas as pd
import pytest
from tiny_runs import make_case
import xarray as xr

from experiments.reporting import run_results, tables


def make_joined():
    """Backprop over two step sizes, a method over no sweep, one over three rates.

    The three rates differ from the plain method by 0, 0.1 and 0.2.
    """
    swept = make_case("backprop")
    plain = make_case("plain").isel(lane=[0, 1]).drop_vars("step_size")
    rates = [
        plain.assign(accuracy=plain.accuracy + rate / 10).assign_coords(
            case=("lane", ["rated"] * 2), rate=("lane", [1.0 + rate] * 2)
        )
        for rate in range(3)
    ]
    rated = xr.concat(rates, dim="lane")
    return swept, plain, run_results.join_cases([swept, plain, rated], {})


def test_every_point_keeps_its_values_and_no_other_is_there():
    swept, plain, joined = make_joined()
    assert joined.accuracy.dims == ("case", "point", "seed", "task")
    settings = list(run_results.settings_of(joined))
    assert [labels for labels, _ in settings] == [
        {"case": "backprop", "step_size": 0.1},
        {"case": "backprop", "step_size": 0.2},
        {"case": "plain"},
        {"case": "rated", "rate": 1.0},
        {"case": "rated", "rate": 2.0},
        {"case": "rated", "rate": 3.0},
    ]
    expected = [swept.accuracy[:2], swept.accuracy[2:], plain.accuracy]
    expected += [plain.accuracy + rate for rate in (0.0, 0.1, 0.2)]
    for (_, setting), accuracy in zip(settings, expected, strict=True):
        np.testing.assert_allclose(setting.accuracy.transpose("seed", "task"), accuracy)
        np.testing.assert_array_equal(setting.seed, [5, 6])


def test_a_shared_sweep_keeps_its_dimension():
    joined = run_results.join_cases([make_case("one"), make_case("two")], {})
    assert joined.sizes["step_size"] == 2
    assert "point" not in joined.dims


def test_tables_and_csv_name_what_a_case_sweeps(tmp_path):
    _, _, joined = make_joined()
    run_results.save(joined, tmp_path)
    loaded = run_results.load(tmp_path)
    table = tables.summary_table(loaded)
    assert table.count("\n") == 1 + 6
    frame = pd.read_csv(io.StringIO(run_results.tidy_csv(loaded)))
    lines = frame[(frame.variable == "accuracy") & (frame.case == "rated")]
    assert len(lines) == 3 * 2 * 3
    assert set(lines.rate) == {1.0, 2.0, 3.0}
    assert lines.step_size.isna().all()
    one = lines[(lines.rate == 2.0) & (lines.seed == 6) & (lines.task == 1)]
    assert one.value.item() == pytest.approx(0.1 * 1 + 0.01 + 0.1)


GRID = {"case": ["backprop", "redo"], "step_size": [0.1, 0.2], "seed": [3, 4]}
TASKS = {"task": [0, 1, 2], "layer": ["dense_0", "head"]}


def file_of_one_sweep(epochs=0):
    """A file as they have been since the first version, here spelled out."""
    lanes = np.arange(8.0).reshape(2, 2, 2)
    variables = {
        "accuracy": ([*GRID, "task"], lanes[..., None] + [0.1, 0.2, 0.3]),
        "dormant_units": (
            [*GRID, "task", "layer"],
            lanes[..., None, None] + np.zeros((3, 2)),
        ),
        "examples": (["case", "task"], np.tile([5.0, 10.0, 15.0], (2, 1))),
        "num_units": (["case", "layer"], np.array([[4.0, 0.0], [6.0, 0.0]])),
        "steps_per_second": (["case"], np.array([1.0, 2.0])),
    }
    if epochs:
        by_epoch = lanes[..., None, None] + np.zeros((3, epochs))
        variables["accuracy_by_epoch"] = ([*GRID, "task", "epoch"], by_epoch)
    return xr.Dataset(variables, GRID | TASKS)


def file_of_own_sweeps():
    """Backprop with one point, redo with two: their dimension stood last."""
    accuracy = np.full((2, 2, 3, 2), np.nan)  # Case, seed, task, point.
    accuracy[0, :, :, 0] = [[0.0], [1.0]]
    accuracy[1] = np.arange(2.0)[:, None, None] + [10.0, 20.0]
    examples = np.tile([5.0, 10.0, 15.0], (2, 2, 1))
    examples[0, 1] = np.nan
    return xr.Dataset(
        {
            "accuracy": (("case", "seed", "task", "point"), accuracy),
            "examples": (("case", "point", "task"), examples),
            "num_units": (("case", "layer"), np.array([[4.0, 0.0], [6.0, 0.0]])),
        },
        TASKS
        | {"case": GRID["case"], "seed": GRID["seed"], "point": [0, 1]}
        | {"threshold": (("case", "point"), [[np.nan, np.nan], [0.1, 0.2]])},
    )


def unfinished_file():
    """Of redo nothing is done yet, of backprop two of three tasks."""
    dataset = file_of_one_sweep()
    dataset["examples"].loc[{"case": "redo"}] = np.nan
    dataset["examples"].loc[{"case": "backprop", "task": 2}] = np.nan
    dataset["accuracy"] = dataset.accuracy.where(dataset.examples.notnull())
    return dataset


def read(dataset, tmp_path):
    """Lanes of a file, and the file itself, from the disk."""
    dataset.to_netcdf(tmp_path / "results.nc", engine="h5netcdf")
    loaded = run_results.load(tmp_path)
    return run_results.lanes_of(loaded), loaded


@pytest.mark.parametrize("epochs", [0, 2])
def test_files_of_one_sweep_are_read_as_lanes(tmp_path, epochs):
    lanes, loaded = read(file_of_one_sweep(epochs), tmp_path)
    assert list(lanes.case.values) == ["backprop"] * 4 + ["redo"] * 4
    np.testing.assert_array_equal(lanes.step_size, [0.1, 0.1, 0.2, 0.2] * 2)
    np.testing.assert_array_equal(lanes.seed, [3, 4] * 4)
    np.testing.assert_allclose(lanes.accuracy[:, 1], np.arange(8) + 0.2)
    np.testing.assert_array_equal(lanes.num_units[:, 0], [4] * 4 + [6] * 4)
    assert "dormant_units" not in loaded
    np.testing.assert_array_equal(lanes.tau_dormant_units[:, 0, 0], np.arange(8))
    if epochs:
        np.testing.assert_array_equal(lanes.accuracy_by_epoch[:, 2, 1], np.arange(8))
    again = run_results.public_form(lanes)
    xr.testing.assert_equal(again, loaded)
    assert all(again[name].dims == loaded[name].dims for name in loaded)


def test_files_of_own_sweeps_are_read_as_lanes(tmp_path):
    lanes, loaded = read(file_of_own_sweeps(), tmp_path)
    assert list(lanes.case.values) == ["backprop"] * 2 + ["redo"] * 4
    np.testing.assert_array_equal(lanes.threshold, [np.nan] * 2 + [0.1] * 2 + [0.2] * 2)
    np.testing.assert_array_equal(lanes.accuracy[:, 0], [0, 1, 10, 11, 20, 21])
    again = run_results.public_form(lanes)
    xr.testing.assert_equal(again, loaded.transpose("case", "point", "seed", ...))


def test_of_an_unfinished_file_only_lanes_that_were_begun_are_read(tmp_path):
    lanes, _ = read(unfinished_file(), tmp_path)
    assert set(lanes.case.values) == {"backprop"}
    assert lanes.sizes["lane"] == 4
    np.testing.assert_array_equal(lanes.accuracy.notnull().sum("task"), 2)
    assert run_results.swept_names(lanes) == ["step_size"]


def test_lanes_in_any_order_and_some_of_them_are_laid_out_alike():
    lanes = run_results.lanes_of(file_of_one_sweep())
    shuffled = lanes.isel(lane=[0, 1, 2, 3, 6, 7, 5, 4])
    xr.testing.assert_equal(
        run_results.public_form(shuffled), run_results.public_form(lanes)
    )
    part = run_results.public_form(lanes.isel(lane=slice(6)))
    np.testing.assert_array_equal(part.step_size, [[0.1, 0.2], [0.1, np.nan]])
    np.testing.assert_allclose(part.accuracy[1, 0, :, 0], [4.1, 5.1])

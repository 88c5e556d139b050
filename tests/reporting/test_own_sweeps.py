"""Cases with sweeps of their own, side by side in one data set."""

import io

import numpy as np
import pandas as pd
import pytest
from tiny_runs import make_case
import xarray as xr

from experiments.reporting import run_results, statistics, tables


def make_joined():
    """Backprop over two step sizes, a method over no sweep, one over three rates."""
    swept = make_case("backprop")
    plain = make_case("plain").isel(step_size=0).drop_vars("step_size")
    rates = xr.concat([plain + rate for rate in (0.0, 0.1, 0.2)], dim="rate")
    rates = rates.assign_coords(rate=[1.0, 2.0, 3.0], case=["rated"])
    for name in ("examples", "steps", "num_weights", "num_units"):
        rates[name] = plain[name].isel(case=0).expand_dims(case=["rated"])
    return swept, plain, run_results.join_cases([swept, plain, rates], {})


def test_every_point_keeps_its_values_and_no_other_is_there():
    swept, plain, joined = make_joined()
    assert set(joined.accuracy.dims) == {"case", "point", "seed", "task"}
    settings = [labels for labels, _ in statistics.settings_of(joined)]
    assert settings == [
        {"case": "backprop", "step_size": 0.1},
        {"case": "backprop", "step_size": 0.2},
        {"case": "plain"},
        {"case": "rated", "rate": 1.0},
        {"case": "rated", "rate": 2.0},
        {"case": "rated", "rate": 3.0},
    ]
    found = dict(enumerate(setting for _, setting in statistics.settings_of(joined)))
    first = swept.accuracy.sel(case="backprop")
    for index, step_size in enumerate((0.1, 0.2)):
        np.testing.assert_array_equal(
            found[index].accuracy.transpose("seed", "task"),
            first.sel(step_size=step_size).transpose("seed", "task"),
        )
    base = plain.accuracy.isel(case=0).transpose("seed", "task")
    for index, rate in enumerate((0.0, 0.1, 0.2)):
        np.testing.assert_allclose(
            found[3 + index].accuracy.transpose("seed", "task"), base + rate
        )


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

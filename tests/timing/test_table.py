"""Rows, the CSV file and the table, from made-up times."""

import csv
import math
import pathlib

import numpy as np
import pytest

from experiments.timing import sessions, table
from experiments.timing.groups import Group, Timed
from experiments.timing.programs import Cost

README = pathlib.Path(__file__).parents[2] / "experiments" / "README.md"
WHERE = {"device": "1 x made up", "jax": "0"}


def made_up_group():
    """The machine is 10 times slower in the second round."""
    seconds = {
        "slow": np.array([4e-6, 40e-6, 6e-6]),
        "backprop": np.array([2e-6, 20e-6, 2e-6]),
        "floor": np.array([1e-6, 10e-6, 0.5e-6]),
    }
    timed = {
        name: Timed("ok", 7, 1, found, cost=Cost(3e3, 4e3), weight_bytes=2e3)
        for name, found in seconds.items()
    }
    timed["large"] = Timed("out of memory: too large", 7)
    return Group(timed, np.array([8e9, 0.8e9, 8e9]), np.array([6e9, 0.6e9, 6e9]))


@pytest.fixture
def rows():
    return table.rows(
        made_up_group(), problem="p", network="n", reference="backprop", where=WHERE
    )


def test_rows_come_the_fastest_first_and_what_failed_last(rows):
    assert [row["method"] for row in rows] == ["floor", "backprop", "slow", "large"]
    assert rows[-1]["status"] == "out of memory: too large"
    assert rows[-1]["rounds"] == 0
    assert math.isnan(rows[-1]["us_per_lane_step"])


def test_ratios_are_medians_of_rounds_not_ratios_of_medians(rows):
    slow = rows[2]
    assert slow["us_per_lane_step"] == pytest.approx(6)
    assert (slow["us_low"], slow["us_high"]) == pytest.approx((5, 23))
    assert slow["ratio_to_reference"] == pytest.approx(2)
    assert (slow["ratio_low"], slow["ratio_high"]) == pytest.approx((2, 2.5))
    assert slow["ratio_to_floor"] == pytest.approx(4)
    assert math.isnan(slow["ratio_to_torch"])
    assert slow["lane_steps_per_second"] == pytest.approx(1e6 / 6)


def test_shares_are_of_what_the_machine_did_in_the_same_round(rows):
    """2 us for 3,000 operations of 6 a ns, 4,000 and 2,000 bytes of 8 a ns."""
    backprop = rows[1]
    assert backprop["matrix_share"] == pytest.approx(0.25)
    assert backprop["bandwidth_share"] == pytest.approx(0.25)
    assert backprop["weight_bandwidth_share"] == pytest.approx(0.125)
    assert backprop["machine_bytes_per_second"] == pytest.approx(8e9)


def test_drift_is_the_second_half_over_the_first():
    def drift(*seconds):
        group = Group({"m": Timed("ok", 1, 1, np.array(seconds))}, *[np.ones(1)] * 2)
        (row,) = table.rows(group, problem="p", network="n", reference="m", where=WHERE)
        return row["drift"]

    assert drift(1.0, 1.0, 5.0, 3.0, 3.0) == pytest.approx(3)
    assert math.isnan(drift(1.0))


def test_the_csv_file_has_the_documented_columns_after_each_append(rows, tmp_path):
    file = table.CsvFile(tmp_path / "new" / "found.csv")
    for number in (1, 2):
        file.append(rows[2:])
        with file.path.open(newline="") as opened:
            read = list(csv.DictReader(opened))
        assert len(read) == 2 * number
    assert tuple(read[0]) == tuple(table.COLUMNS)
    assert float(read[0]["us_per_lane_step"]) == pytest.approx(6)
    assert read[0]["ratio_to_torch"] == ""
    assert read[1] | {"us_low": ""} == read[1]
    page = README.read_text()
    assert not [column for column in table.COLUMNS if f"`{column}`" not in page]


def test_the_table_shows_medians_with_quartiles_and_drops_what_is_the_same(rows):
    lines = table.table(rows, "backprop").splitlines()
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert header[:3] == ["case", "µs per lane and update", "ratio to backprop"]
    cells = [cell.strip() for cell in lines[4].split("|")[1:-1]]
    assert cells[:4] == ["slow", "6 (5 to 23)", "2 (2 to 2.5)", "4"]
    assert "to torch" not in header
    assert "out of memory: too large" in lines[-1]


def test_the_projection_is_at_the_best_rate_of_each_method(rows):
    fast = rows[1] | {"lane_steps_per_second": 1e6, "lanes": 30}
    other = rows[0] | {"network": "another", "lane_steps_per_second": 1e9}
    paper = {"network": "n", "lane_steps": 36 * 10**8}
    found = sessions.projection([*rows[1:], fast, other], paper)
    assert found == [
        "3,600,000,000 updates of n units by backprop: 1.0 hours at the rate of 30 "
        "lanes",
        "3,600,000,000 updates of n units by slow: 6.0 hours at the rate of 7 lanes",
    ]

"""Rows, the CSV file and the table, from made-up times."""

import math
import pathlib

import numpy as np
import pytest

from experiments.timing import table
from experiments.timing.table import Timing

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "benchmark.md"


@pytest.fixture(scope="module")
def rows():
    """The machine is 10 times slower in the second round."""
    seconds = {
        "slow": np.array([4e-6, 40e-6, 6e-6]),
        "backprop": np.array([2e-6, 20e-6, 2e-6]),
        "floor": np.array([1e-6, 10e-6, 0.5e-6]),
    }
    timings = {name: Timing(7, found) for name, found in seconds.items()}
    timings["slow"] = timings["slow"]._replace(data_share=0.25, memory_bytes=3_000_000)
    timings["large"] = Timing(7, status="out of memory: too large")
    return table.make_rows(timings, "p", "n", "backprop")


def test_rows_come_the_fastest_first_and_what_failed_last(rows):
    assert [row["method"] for row in rows] == ["floor", "backprop", "slow", "large"]
    assert rows[-1]["status"] == "out of memory: too large"
    assert rows[-1]["rounds"] == 0
    assert math.isnan(rows[-1]["us_per_lane_step"])


def test_ratios_are_medians_of_rounds_not_ratios_of_medians(rows):
    slow = rows[2]
    assert slow["us_per_lane_step"] == pytest.approx(6)
    assert slow["ratio_to_reference"] == pytest.approx(2)
    assert (slow["ratio_low"], slow["ratio_high"]) == pytest.approx((2, 2.5))
    assert slow["ratio_to_floor"] == pytest.approx(4)
    assert math.isnan(slow["ratio_to_torch"])
    assert slow["lane_steps_per_second"] == pytest.approx(1e6 / 6)


def test_the_file_has_the_documented_columns_and_nothing_for_what_is_not_known(rows):
    cells = table.csv_cells(rows[2])
    assert cells.keys() == table.COLUMNS.keys()
    assert float(cells["us_per_lane_step"]) == pytest.approx(6)
    assert (cells["lanes"], cells["memory_bytes"]) == ("7", "3000000")
    assert (cells["ratio_to_torch"], cells["compile_seconds"]) == ("", "")
    page = PAGE.read_text()
    for column, description in table.COLUMNS.items():
        assert f"| `{column}`" in page
        assert f"| {description} " in page


def test_the_table_shows_medians_with_quartiles_and_drops_what_is_the_same(rows):
    lines = table.make_table(rows, "backprop").splitlines()
    header, slow, large = (
        [cell.strip() for cell in lines[index].split("|")[1:-1]] for index in (0, 4, 5)
    )
    found = dict(zip(header, slow, strict=True))
    assert found == {
        "case": "slow",
        "µs per lane and update": "6",
        "ratio to backprop": "2 (2 to 2.5)",
        "rounds": "3",
        "to floor": "4",
        "updates/s": "166,667",
        "data %": "25",
        "memory MB": "3",
    }
    assert large[:3] == ["large", "out of memory: too large", ""]

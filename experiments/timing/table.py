"""Rows of timings: for a CSV file with all numbers, and for a readable table.

Ratios and shares are computed in each round; then the median over rounds is taken.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.reporting.tables import format_table

FLOOR, TORCH = "floor", "torch"
"""Names of the baselines that are not methods of this project."""

COLUMNS: Mapping[str, str] = {
    "problem": "name of the program",
    "network": "hidden layers x units, or a description",
    "method": "name of the case, or floor, or torch",
    "lanes": "learners in the program",
    "status": "ok, or why the rest is empty",
    "rounds": "number of interleaved rounds",
    "us_per_lane_step": "microseconds of wall time per update of a lane",
    "lane_steps_per_second": "updates per second, all lanes together",
    "ratio_to_reference": "time divided by the reference's (backprop), same round",
    "ratio_low": "its lower quartile",
    "ratio_high": "its upper quartile",
    "ratio_to_floor": "time divided by the hand-written loop's, same round",
    "ratio_to_torch": "time divided by a PyTorch update of one lane, same round",
    "ratio_to_projection": "time divided by the projected time; accelerators only",
    "bandwidth_share": "share of the bandwidth: three reads, one write of weights",
    "data_share": "share of the timed task that is not updates: stream, tests",
    "measures_share": "share of a run's task that its measures take",
    "compile_seconds": "time to compile the program",
    "memory_bytes": "memory that the compiled program needs on each device",
    "device": "number and kind of the devices",
    "jax": "version of JAX",
}
"""The columns of the CSV file, and their descriptions; empty if not measured."""

Row = dict[str, Any]


class Timing(NamedTuple):
    """Timing of one method.

    Attributes:
      lanes: L.
      seconds: wall time of an update of a lane, with all lanes running, [rounds].
      status: "ok", or why there are no rounds.
      projected_seconds: result of `projections.project` for the compiled program; NaN
        on an unknown device.

    The others are columns; see `COLUMNS`.
    """

    lanes: int
    seconds: np.ndarray = np.zeros(0)
    status: str = "ok"
    projected_seconds: float = math.nan
    bandwidth_share: float = math.nan
    data_share: float = math.nan
    measures_share: float = math.nan
    compile_seconds: float = math.nan
    memory_bytes: float = math.nan


def make_rows(
    timings: Mapping[str, Timing], problem: str, network: str, reference: str
) -> list[Row]:
    """Returns one row for each method of a group, the fastest first.

    Args:
      timings: timings by name of the case, including `FLOOR` and `TORCH`.
      problem: name of the problem.
      network: size of the network.
      reference: the case by whose time the others are divided.
    """
    rows = []
    for name, timing in timings.items():
        row = dict.fromkeys(COLUMNS, math.nan) | timing._asdict()
        seconds, projected = row.pop("seconds"), row.pop("projected_seconds")
        row |= {"problem": problem, "network": network, "method": name}
        row |= {"rounds": seconds.size, "jax": jax.__version__}
        row["device"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
        if seconds.size:
            row["us_per_lane_step"] = 1e6 * np.median(seconds)
            row["lane_steps_per_second"] = 1 / np.median(seconds)
            row["ratio_to_projection"] = np.median(seconds) / projected
            for column, other in (
                ("ratio_to_reference", reference),
                ("ratio_to_floor", FLOOR),
                ("ratio_to_torch", TORCH),
            ):
                if other in timings and timings[other].seconds.size:
                    ratios = seconds / timings[other].seconds
                    row[column] = np.median(ratios)
                    if other == reference:
                        quartiles = np.quantile(ratios, (0.25, 0.75))
                        row["ratio_low"], row["ratio_high"] = quartiles
        rows.append(row)
    return sorted(rows, key=lambda row: (not row["rounds"], row["us_per_lane_step"]))


def csv_cells(row: Row) -> dict[str, str]:
    """Writes the numbers of a row; NaN is empty."""
    cells = {
        column: f"{value:.6g}" if isinstance(value, float) else str(value)
        for column, value in row.items()
    }
    return {column: "" if cell == "nan" else cell for column, cell in cells.items()}


def make_table(rows: Sequence[Row], reference: str) -> str:
    """Returns a readable table, without empty columns or those the same in all rows."""
    lines = [_line(row, reference) for row in rows]
    used = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in ("problem", "network", "lanes"):
        if len({line[name] for line in lines}) == 1:
            used.remove(name)
    return format_table([{name: line[name] for name in used} for line in lines])


# Columns of the table: name, then column of the file, factor, format.
_READABLE = {
    "rounds": ("rounds", 1, "d"),
    "to floor": ("ratio_to_floor", 1, ".3g"),
    "to torch": ("ratio_to_torch", 1, ".3g"),
    "to projection": ("ratio_to_projection", 1, ".3g"),
    "updates/s": ("lane_steps_per_second", 1, ",.0f"),
    "bandwidth %": ("bandwidth_share", 100, ".3g"),
    "data %": ("data_share", 100, ".2g"),
    "measures %": ("measures_share", 100, ".2g"),
    "compile s": ("compile_seconds", 1, ".1f"),
    "memory MB": ("memory_bytes", 1e-6, ",.3g"),
}


def _line(row: Row, reference: str) -> dict[str, str]:
    time, ratio = f"{row['us_per_lane_step']:.3g}", ""
    if math.isfinite(row["ratio_to_reference"]):
        quartiles = (row[f"ratio_{name}"] for name in ("to_reference", "low", "high"))
        ratio = spread(*quartiles)
    return {
        "problem": row["problem"],
        "network": row["network"],
        "lanes": str(row["lanes"]),
        "case": row["method"],
        "µs per lane and update": time if row["rounds"] else row["status"],
        f"ratio to {reference}": ratio,
    } | {
        name: "" if math.isnan(row[column]) else format(factor * row[column], form)
        for name, (column, factor, form) in _READABLE.items()
    }


def spread(median: float, low: float, high: float) -> str:
    """Writes a median and the quartiles around it."""
    return f"{median:.3g} ({low:.3g} to {high:.3g})"

"""What was timed as rows: a CSV file with all numbers, and a table to read.

Ratios and shares are taken in each round; medians over the rounds are written, with the
quartiles beside those that scatter.
"""

from collections.abc import Mapping, Sequence
import csv
import math
import pathlib
from typing import Any

import numpy as np

from experiments.reporting.tables import format_table
from experiments.timing.groups import FLOOR, Group, Timed

COLUMNS: Mapping[str, str] = {
    "problem": "name of the program",
    "network": "hidden layers x units, or what stands for it",
    "method": "name of the case; floor, torch",
    "lanes": "learners in the program",
    "lanes_per_block": "of them, those that a device runs as one batch",
    "status": "ok, or why the rest is empty",
    "rounds": "in which all of the group took turns",
    "us_per_lane_step": "microseconds of wall time per update of a lane",
    "us_low": "its lower quartile over the rounds",
    "us_high": "its upper quartile",
    "lane_steps_per_second": "updates of all lanes together",
    "ratio_to_reference": "time over that of the reference (backprop), same round",
    "ratio_low": "its lower quartile",
    "ratio_high": "its upper quartile",
    "ratio_to_floor": "time over that of the hand-written loop, same round",
    "ratio_to_torch": "time over that of a PyTorch step of one lane, same round",
    "operations": "floating-point operations of a lane's update, by XLA's count",
    "bytes": "bytes that its fused parts read and write, by XLA's count",
    "weight_bytes": "bytes if weights are read twice, then read and written",
    "matrix_share": "operations per second over those of a product of matrices",
    "bandwidth_share": "bytes per second over the machine's bandwidth",
    "weight_bandwidth_share": "weight_bytes per second over the machine's bandwidth",
    "machine_bytes_per_second": "reading two long vectors and writing one",
    "machine_operations_per_second": "a product of two matrices of float32",
    "data_share": "of the timed task, what is not updates: stream, tests",
    "measures_share": "of a run's task, what is measured before it",
    "drift": "time in the second half of the rounds over that in the first",
    "compile_seconds": "of the program",
    "memory_bytes": "that the compiled program needs on each device",
    "peak_bytes": "most that the process has held on a device until then",
    "device": "number and kind of the devices",
    "jax": "its version",
}
"""The columns of the CSV file and what they hold; empty where not measured."""

Row = dict[str, Any]


def rows(
    group: Group,
    *,
    problem: str,
    network: str,
    reference: str,
    where: Mapping[str, str],
) -> list[Row]:
    """Lays out one row for each program of a group, the fastest first.

    Args:
      group: what was timed.
      problem: its name.
      network: its size.
      reference: case to divide by.
      where: `device` and `jax`.
    """
    seconds = {
        name: one.seconds for name, one in group.timed.items() if one.seconds.size
    }
    found = []
    for name, one in group.timed.items():
        row = dict.fromkeys(COLUMNS, math.nan) | dict(where)
        row |= {"problem": problem, "network": network, "method": name}
        row |= {"lanes": one.lanes, "lanes_per_block": one.block, "status": one.status}
        row["rounds"] = one.seconds.size
        if one.seconds.size:
            row |= _numbers(one, group)
            for column, other in (
                ("ratio_to_reference", reference),
                ("ratio_to_floor", FLOOR),
                ("ratio_to_torch", "torch"),
            ):
                if other in seconds:
                    row[column] = np.median(one.seconds / seconds[other])
            if reference in seconds:
                ratio = one.seconds / seconds[reference]
                row["ratio_low"], row["ratio_high"] = np.quantile(ratio, (0.25, 0.75))
        found.append(row)
    return sorted(found, key=_speed)


def _speed(row: Row) -> float:
    return row["us_per_lane_step"] if row["rounds"] else math.inf


def _numbers(one: Timed, group: Group) -> Row:
    """What follows from the times of one program and of the machine."""
    low, middle, high = 1e6 * np.quantile(one.seconds, (0.25, 0.5, 0.75))
    stream, product = group.stream_rate, group.product_rate

    def share(amount: float, rate: np.ndarray) -> float:
        return float(np.median(amount / one.seconds / rate))

    half = one.seconds.size // 2
    return {
        "us_per_lane_step": middle,
        "us_low": low,
        "us_high": high,
        "lane_steps_per_second": 1e6 / middle,
        "operations": one.cost.operations,
        "bytes": one.cost.bytes,
        "weight_bytes": one.weight_bytes,
        "matrix_share": share(one.cost.operations, product),
        "bandwidth_share": share(one.cost.bytes, stream),
        "weight_bandwidth_share": share(one.weight_bytes, stream),
        "machine_bytes_per_second": np.median(stream),
        "machine_operations_per_second": np.median(product),
        "data_share": one.data_share,
        "measures_share": one.measures_share,
        "drift": (
            np.median(one.seconds[-half:]) / np.median(one.seconds[:half])
            if half
            else math.nan
        ),
        "compile_seconds": one.compile_seconds,
        "memory_bytes": one.memory_bytes,
        "peak_bytes": one.peak_bytes,
    }


class CsvFile:
    """A CSV file that grows by rows and is whole after each.

    Args:
      path: of the file; what it holds is written over, its folder is made.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)

    def append(self, new: Sequence[Row]) -> None:
        """Adds rows."""
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for row in new:
                writer.writerow([_cell(row[column]) for column in COLUMNS])


def _cell(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def table(found: Sequence[Row], reference: str) -> str:
    """Lays out rows to be read, without what is empty, or says the same, in all."""
    lines = [_line(row, reference) for row in found]
    used = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in ("problem", "network", "lanes"):
        if len({line[name] for line in lines}) == 1:
            used.remove(name)
    return format_table([{name: line[name] for name in used} for line in lines])


def _line(row: Row, reference: str) -> dict[str, str]:
    lines = {
        "problem": row["problem"],
        "network": row["network"],
        "lanes": str(row["lanes"]),
        "case": row["method"],
    }
    if not row["rounds"]:
        lines |= {"µs per lane and update": row["status"], f"ratio to {reference}": ""}
        return lines | dict.fromkeys(_READABLE, "")
    return (
        lines
        | {
            "µs per lane and update": _spread(row, "us_per_lane_step", "us_"),
            f"ratio to {reference}": _spread(row, "ratio_to_reference", "ratio_"),
        }
        | {
            name: _readable(row[column], factor, form)
            for name, (column, factor, form) in _READABLE.items()
        }
    )


# Columns of the table: name, then column of the file, factor, format.
_READABLE = {
    "to floor": ("ratio_to_floor", 1, ".3g"),
    "to torch": ("ratio_to_torch", 1, ".3g"),
    "updates/s": ("lane_steps_per_second", 1, ",.0f"),
    "bandwidth %": ("bandwidth_share", 100, ".3g"),
    "weights' bandwidth %": ("weight_bandwidth_share", 100, ".3g"),
    "matrix %": ("matrix_share", 100, ".3g"),
    "data %": ("data_share", 100, ".2g"),
    "measures %": ("measures_share", 100, ".2g"),
    "compile s": ("compile_seconds", 1, ".1f"),
    "memory MB": ("memory_bytes", 1e-6, ",.3g"),
}


def _readable(value: float, factor: float, form: str) -> str:
    return "" if math.isnan(value) else format(factor * value, form)


def _spread(row: Row, middle: str, quartiles: str) -> str:
    if math.isnan(row[middle]):
        return ""
    low, high = row[f"{quartiles}low"], row[f"{quartiles}high"]
    return f"{row[middle]:.3g} ({low:.3g} to {high:.3g})"

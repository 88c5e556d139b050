"""Rows and a table of the programs compiled for an accelerator."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from experiments.reporting.tables import format_table
from experiments.run.cases import Case
from experiments.timing import programs
from experiments.timing.ahead_of_time import CompiledTask
from experiments.timing.compiled_programs import summarize
from experiments.timing.devices import Device
from experiments.timing.projections import Assumptions, project

COLUMNS: Mapping[str, str] = {
    "problem": "name of the program",
    "network": "hidden layers x units, or a description",
    "method": "name of the case",
    "lanes": "learners in the program",
    "device": "number and name of the accelerators",
    "kernels": "kernels of an update of all lanes, outside conditionals",
    "conditionals": "conditionals that an update reaches",
    "least_in_branches": "kernels in the branches with the fewest",
    "most_in_branches": "kernels in the branches with the most",
    "cycles": "cycles outside conditionals, estimated by the compiler; TPU only",
    "most_cycles_in_branches": "cycles in the branches with the most",
    "bytes_moved": "bytes moved by an update outside conditionals, without caches",
    "least_bytes": "bytes that any program with this state must move",
    "lane_bytes": "memory that each lane adds",
    "lanes_that_fit": "lanes that fit on one device",
    "compile_seconds": "time to compile the task",
    "collectives": "instructions that synchronize devices",
    "least_update_seconds": "projected time for all lanes, with only shorter branches",
    "update_seconds": "projected time for all lanes, with the assumed longer branches",
    "bound": "what takes most of that time",
    "run_seconds": "projected time for the updates of all tasks",
}
"""The columns of the CSV file, and their descriptions."""

Row = dict[str, Any]


def make_row(
    case: Case, network: str, task: CompiledTask, device: Device, assumed: Assumptions
) -> Row:
    """Returns the row of a case; callers set `problem` and `device`."""
    projection = project(task.work, device, assumed)
    least = project(task.work, device, assumed._replace(branch_share=0.0))
    counts = summarize(task.work)
    updates = case.problem.updates_per_task * case.config.num_tasks
    on_tpu = device.platform == "tpu" and projection.bound == "launches"
    return dict.fromkeys(COLUMNS) | {
        "network": network,
        "method": case.name,
        "lanes": case.num_lanes,
        **{name: value for name, value in counts._asdict().items() if name in COLUMNS},
        "least_bytes": programs.least_bytes(case),
        "lane_bytes": task.lane_bytes,
        "lanes_that_fit": task.lanes_that_fit,
        "compile_seconds": task.compile_seconds,
        "collectives": len(task.collectives),
        "least_update_seconds": least.seconds,
        "update_seconds": projection.seconds,
        "bound": "cycles" if on_tpu else projection.bound,
        "run_seconds": updates * projection.seconds,
    }


def make_table(rows: Sequence[Row]) -> str:
    """Returns a readable table, without empty columns or those the same in all rows."""
    lines = [_line(row) for row in rows]
    used = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in ("problem", "network", "lanes", "device"):
        if len({line[name] for line in lines}) == 1:
            used.remove(name)
    return format_table([{name: line[name] for name in used} for line in lines])


def _line(row: Row) -> dict[str, str]:
    in_branches, cycles = "", ""
    if row["conditionals"]:
        in_branches = f"{row['least_in_branches']:.4g} to {row['most_in_branches']:.4g}"
    if row["cycles"]:
        cycles = f"{row['cycles'] / 1e3:,.1f}"
        if row["conditionals"]:
            cycles += f" + {row['most_cycles_in_branches'] / 1e3:,.1f}"
    return {
        "problem": row["problem"],
        "network": row["network"],
        "lanes": str(row["lanes"]),
        "device": row["device"],
        "case": row["method"],
        "kernels": f"{row['kernels']:.4g}",
        "conditionals": f"{row['conditionals']:.3g}" if row["conditionals"] else "",
        "in branches": in_branches,
        "kilocycles": cycles,
        "MB moved": _three_digits(row["bytes_moved"] / 1e6),
        "MB at least": _three_digits(row["least_bytes"] / 1e6),
        "MB a lane": _three_digits(row["lane_bytes"] / 1e6),
        "lanes that fit": f"{row['lanes_that_fit']:,}",
        "compile s": f"{row['compile_seconds']:.1f}",
        "collectives": str(row["collectives"] or ""),
        "µs an update": _range(row["least_update_seconds"], row["update_seconds"]),
        "bound by": row["bound"],
        "hours": _three_digits(row["run_seconds"] / 3600),
    }


def _range(least: float, most: float) -> str:
    """Writes two times in microseconds, or one if they are equal."""
    ends = (_three_digits(1e6 * seconds) for seconds in (least, most))
    return " to ".join(dict.fromkeys(ends))


def _three_digits(number: float) -> str:
    """Writes a number with three digits, without an exponent."""
    if number == 0:
        return "0"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"

"""Markdown tables of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting.run_results import settings_of, swept_names
from experiments.reporting.statistics import (
    Estimate,
    estimate,
    in_bins,
    layer_sizes,
    over_layers,
    score_name,
    tasks_per_bin,
)

if TYPE_CHECKING:
    import xarray as xr

# Measures of layers in the summary: column, factor, digits.
_LAST_MEASURED = {
    "dead_units": ("dead units %", 100, 1),
    "effective_rank": ("effective rank", 1, 1),
    "effective_rank_percent": ("effective rank %", 1, 1),
    "weight_magnitude": ("weight magnitude", 1, 4),
}

INTERVALS = "Means over seeds ± 95 % confidence intervals."
"""The caption of `summary_table`."""


def summary_table(dataset: xr.Dataset) -> str:
    """Returns a table of means over seeds with 95 % intervals, one line per setting.

    If the run has learners with a warm and with a cold start, there is also the
    difference of their last scores, paired by seed, in the lines of the warm ones.
    """
    settings = list(settings_of(dataset))
    return format_table(
        [
            _label_cells(dataset, labels)
            | _summary(setting)
            | _warm_minus_cold(dataset, settings, labels, setting)
            for labels, setting in settings
        ]
    )


def score_table(dataset: xr.Dataset, tasks: Sequence[int]) -> str:
    """Returns a table of the score in chosen tasks, one line per setting.

    Args:
      dataset: results of a run.
      tasks: numbers of tasks; -1 is the last one.

    Returns:
      A Markdown table of means over seeds ± one standard error.

    Raises:
      ValueError: the run does not have one of the tasks.
    """
    num_tasks = dataset.sizes["task"]
    for task in tasks:
        if not -num_tasks <= task < num_tasks:
            raise ValueError(
                f"Task {task} is not among the {num_tasks} tasks of this run: choose "
                f"from 0 to {num_tasks - 1}, or pass -1 for the last."
            )
    score, unit, factor = _score(dataset)
    rows = []
    for labels, setting in settings_of(dataset):
        curve = setting[score].transpose("seed", "task").values * factor
        estimates = {task % num_tasks: estimate(curve[:, task]) for task in tasks}
        rows.append(
            _label_cells(dataset, labels)
            | {
                f"{unit}, task {task}": _plus_minus(one.mean, one.standard_error, 3)
                for task, one in estimates.items()
            }
        )
    return format_table(rows)


def _score(dataset: xr.Dataset) -> tuple[str, str, int]:
    """Returns the name of the score, its title, and the factor for its unit."""
    name = score_name(dataset)
    return (name, "accuracy %", 100) if name == "accuracy" else (name, name, 1)


def _label_cells(dataset: xr.Dataset, labels: Mapping[str, Any]) -> dict[str, str]:
    """Returns the cells of a setting: its case, and each value that any case sweeps."""
    names = ("case", *swept_names(dataset))
    return {name: label(labels[name]) if name in labels else "" for name in names}


def _summary(setting: xr.Dataset) -> dict[str, str]:
    """Summarizes one setting: the columns after its labels."""
    score, unit, factor = _score(setting)
    curve = setting[score].transpose("seed", "task").values * factor
    curve = curve[:, setting.examples.notnull().values]
    num_tasks, size = curve.shape[1], min(tasks_per_bin(setting), curve.shape[1])
    if size > 1:
        curve = in_bins(curve, size)
        unit = f"{size} tasks, {unit}"
    finished = np.isfinite(curve[:, -1]).sum()
    means = np.array([estimate(column).mean for column in curve.T])
    best = 0
    if np.isfinite(means).any():
        best = int((np.nanargmax if score == "accuracy" else np.nanargmin)(means))
    columns = {
        "seeds": f"{finished} of {len(curve)}",
        f"first {unit}": _interval(estimate(curve[:, 0])),
        f"best {unit}": (
            f"{_interval(estimate(curve[:, best]))} ({_tasks(best, size, num_tasks)})"
        ),
        f"last {unit}": _interval(estimate(curve[:, -1])),
    }
    for name, (column, factor, digits) in _LAST_MEASURED.items():
        if name not in setting:
            continue
        last = estimate(_last_measured(over_layers(setting, name))).mean
        has_meaning = layer_sizes(setting, name).any()
        columns[column] = f"{factor * last:.{digits}f}" if has_meaning else "-"
    return columns | {"steps/s": f"{float(setting.steps_per_second):,.0f}"}


def _warm_minus_cold(
    dataset: xr.Dataset,
    settings: Sequence[tuple[dict[str, Any], xr.Dataset]],
    labels: Mapping[str, Any],
    setting: xr.Dataset,
) -> dict[str, str]:
    """Returns the cell of a setting that compares it with the same after a cold start.

    Args:
      dataset: results of a run.
      settings: all its settings with their labels.
      labels: labels of the setting.
      setting: results of the setting.

    Returns:
      No cell if the run has no cold starts; an empty one if the setting has no partner.
      Its partner is the case that differs from its own in nothing but `start` or, if
      there is none, in nothing but `start` and `method`.
    """
    config = json.loads(dataset.attrs.get("config", "{}"))
    fields = {name: config | case for name, case in config.get("cases", {}).items()}
    if "cold" not in (case.get("start") for case in fields.values()):
        return {}
    score, unit, factor = _score(dataset)
    own, cell = fields[labels["case"]], ""
    partners = [
        {**own, "start": "cold"},
        {**own, "start": "cold", "method": "backprop"},
    ]
    found = {
        partners.index(fields[others["case"]]): cold[score]
        for others, cold in settings
        if fields[others["case"]] in partners
        and {**others, "case": labels["case"]} == labels
    }
    if found and own.get("start") != "cold":
        difference = (setting[score] - found[min(found)]).transpose("seed", "task")
        has_run = setting.examples.notnull().values
        cell = _interval(estimate(factor * difference.values[:, has_run][:, -1]))
    return {f"last {unit}, warm - cold": cell}


def _tasks(index: int, size: int, num_tasks: int) -> str:
    """Writes the tasks of a bin."""
    if size == 1:
        return f"task {index}"
    return f"tasks {index * size} to {min((index + 1) * size, num_tasks) - 1}"


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats rows with equal keys as an aligned Markdown table."""
    header = list(rows[0])
    cells = [header, *([row[name] for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def diverged_lanes(dataset: xr.Dataset) -> list[str]:
    """Describes each lane that diverged: its setting, its seed, and the task."""
    score = score_name(dataset)
    found = []
    for labels, setting in settings_of(dataset):
        has_run = setting.examples.notnull().values
        for seed in setting.seed.values:
            curve = setting[score].sel(seed=seed).values[has_run]
            if np.isnan(curve).any():
                names = ", ".join(f"{name} {label(v)}" for name, v in labels.items())
                task = int(np.isnan(curve).argmax())
                found.append(f"{names}, seed {seed}: diverged in task {task}")
    return found


def _last_measured(values: xr.DataArray) -> np.ndarray:
    """Returns the values at the last task that was measured for any seed: [seeds]."""
    values = values.transpose("seed", "task").values
    measured = np.flatnonzero(np.isfinite(values).any(axis=0))
    return values[:, measured[-1]] if measured.size else values[:, -1]


def _interval(value: Estimate) -> str:
    return _plus_minus(value.mean, value.half_width, 2)


def _plus_minus(mean: float, spread: float, digits: int) -> str:
    around = "" if np.isnan(spread) else f" ± {spread:.{digits}f}"
    return f"{mean:.{digits}f}{around}"


def label(value: Any) -> str:
    """Writes a case name or a swept number."""
    return str(value) if isinstance(value, str) else f"{value:g}"

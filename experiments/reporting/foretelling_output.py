"""Writes which measures foretell scores as Markdown, CSV and a figure."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from experiments.reporting import files, plots
from experiments.reporting.foretelling import (
    BASELINES,
    Correlation,
    Foretold,
    Points,
)
from experiments.reporting.styles import distinct_points, in_words
from experiments.reporting.tables import format_table

_MOST_COLUMNS = 5
# Ratio of the largest to the smallest value from which an axis is logarithmic.
_WIDE = 100


def write(foretold: Foretold, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the tables and the figure.

    Args:
      foretold: the outcome.
      folder: the folder to write to, created if needed.

    Returns:
      The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in files.FORETELLING_FILES]
    text, table, figure = paths
    text.write_text(markdown(foretold), encoding="utf-8")
    table.write_text(csv(foretold))
    draw(foretold, figure)
    return paths


def markdown(foretold: Foretold) -> str:
    """Writes the correlations of all points, and those within each method."""
    points = foretold.points
    score = "accuracy" if points.more_is_better else "negative error"
    lanes, tasks = points.scores.shape
    seeds, methods = (len(np.unique(each)) for each in (points.seeds, points.methods))
    parts = [
        "# What measures before a task foretell",
        f"Spearman correlations of each measure with the {score} of the task that "
        "follows; a positive one means that more of the measure goes with a better "
        f"task. {tasks} tasks, {lanes} lanes of {methods} methods and {seeds} seeds. "
        "*Between* is among the lanes at a task, a mean over tasks; *within* is among "
        "the tasks of a lane, a mean over lanes. *Partial* is given all other measures "
        "in the table. 95 % intervals are over seeds.",
    ]
    if foretold.warnings:
        parts.append("\n".join(f"* {warning}" for warning in foretold.warnings))
    parts += [
        measure_table(foretold),
        "## Within each method",
        method_table(foretold),
    ]
    return "\n\n".join(parts) + "\n"


def measure_table(foretold: Foretold) -> str:
    """Returns a table with one line per measure, the strongest between lanes first."""
    between, within = foretold.of("between"), foretold.of("within")
    return format_table(
        [
            {
                "measure": name,
                "between": _with_interval(between[name].alone),
                "between, partial": _with_interval(between[name].partial),
                "within": _with_interval(within[name].alone),
                "within, partial": _with_interval(within[name].partial),
            }
            for name in _by_strength(foretold)
        ]
    )


def method_table(foretold: Foretold) -> str:
    """Returns a table of correlations within each method, one line per measure."""
    methods = dict.fromkeys(foretold.points.methods.tolist())
    found = {method: foretold.of("within", method) for method in methods}
    return format_table(
        [
            {"measure": name}
            | {
                method: _number(rows[name].alone.value)
                for method, rows in found.items()
            }
            for name in _by_strength(foretold)
        ]
    )


def csv(foretold: Foretold) -> str:
    """Writes one line per kind, group and measure; the group is a task or a method."""
    import pandas as pd

    rows = [
        {
            "kind": row.kind,
            "group": row.group,
            "measure": row.measure,
            "correlation": row.alone.value,
            "low": row.alone.low,
            "high": row.alone.high,
            "partial": row.partial.value,
            "partial_low": row.partial.low,
            "partial_high": row.partial.high,
        }
        for row in foretold.rows
    ]
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.9g")


def draw(foretold: Foretold, path: pathlib.Path) -> pathlib.Path:
    """Draws each measure before a task against the score of the task.

    There is one panel for each measure, and one point for each lane and task.

    Args:
      foretold: the outcome.
      path: the file to write.

    Returns:
      The path.
    """
    points = foretold.points
    between, within = foretold.of("between"), foretold.of("within")
    names = [name for name in _by_strength(foretold) if name not in BASELINES]
    names = [*names, *(name for name in BASELINES if name in points.measures)]
    num_columns = min(len(names), _MOST_COLUMNS)
    figure, axes = plots.subplots(
        -(-len(names) // num_columns),
        num_columns,
        sharey=True,
        figsize=(2.7 * num_columns, 0.8 + 2.4 * -(-len(names) // num_columns)),
    )
    for axis, name in zip(axes.flat, names, strict=False):
        _draw_points(axis, points, name)
        axis.set_xlabel(in_words(name))
        axis.set_title(
            f"between {_number(between[name].alone.value)}, within "
            f"{_number(within[name].alone.value)}",
            fontsize="small",
        )
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)" if points.more_is_better else "squared error")
    for axis in axes.flat[len(names) :]:
        axis.remove()
    plots.legend_above(figure, axes[0, 0].lines, num_columns)
    return plots.save(figure, path)


def _draw_points(axis: Any, points: Points, name: str) -> None:
    values = points.values[points.measures.index(name)]
    scores = points.scores * (100 if points.more_is_better else 1)
    methods = list(dict.fromkeys(points.methods.tolist()))
    for method, (color, marker) in distinct_points(methods).items():
        is_own = points.methods == method
        axis.plot(
            values[is_own].ravel(),
            scores[is_own].ravel(),
            linestyle="",
            marker=marker,
            markersize=4,
            markeredgewidth=0,
            alpha=0.5,
            color=color,
            label=in_words(method),
        )
    known = values[np.isfinite(values)]
    if known.min() > 0 and known.max() > _WIDE * known.min():
        axis.set_xscale("log")
    if not points.more_is_better and np.nanmin(scores) > 0:
        axis.set_yscale("log")


def _by_strength(foretold: Foretold) -> Sequence[str]:
    """Returns the measures, the one with the strongest correlation between first."""
    between, within = foretold.of("between"), foretold.of("within")

    def strength(name: str) -> tuple[float, ...]:
        values = (between[name].alone.value, within[name].alone.value)
        return tuple(-abs(value) if np.isfinite(value) else 1.0 for value in values)

    return sorted(foretold.points.measures, key=strength)


def _with_interval(found: Correlation) -> str:
    if np.isnan(found.value):
        return "-"
    around = f" [{_number(found.low)}, {_number(found.high)}]"
    return _number(found.value) + ("" if np.isnan(found.low) else around)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.2f}"

"""The figure of a stream of tasks of different difficulty: its start, and bins of it.

Source: the layout of the paper's figure 1, Continual ImageNet.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np
import xarray as xr

from experiments.reporting import panels
from experiments.reporting.bins import in_bins, tasks_per_bin
from experiments.reporting.styles import MethodStyle, method_style

FIGURE_FILE = "bins.png"

Line = tuple[str, MethodStyle, xr.Dataset]
"""Label, style and results of a line."""

_FIRST_TASKS = 10
_MOST_BANDS = 8


def draw_bins(
    rows: Mapping[str, Sequence[Line]],
    baselines: Sequence[xr.Dataset],
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws the accuracy of the first ten tasks, and of all tasks in bins.

    Bands are 95 % confidence intervals of the mean over seeds, left out where a row has
    too many lines.

    Args:
      rows: the lines of each row of panels, by title; "" is a row that needs none.
      baselines: results of linear models, dashed lines in all panels.
      path: the file to write.

    Returns:
      The path.
    """
    figure, axes = panels.subplots(len(rows), 2, sharey="row")
    linear = method_style("linear")._replace(color="gray", dashes="--")
    for row_axes, (title, lines) in zip(axes, rows.items(), strict=True):
        band = "half_width" if len(lines) <= _MOST_BANDS else ""
        for label, style, setting in lines:
            _draw_line(row_axes, setting, style, band=band, label=label)
        for setting in baselines:
            _draw_line(row_axes, setting, linear, band="", label="linear")
        row_axes[0].set_ylabel("test accuracy (%)")
        row_axes[0].set_ylim(top=min(row_axes[0].get_ylim()[1], 101))
        row_axes[1].tick_params(labelleft=True)
        if title:
            panels.legend_beside(row_axes[-1], title)
    size = max(tasks_per_bin(lines[0][2]) for lines in rows.values())
    axes[0, 0].set_title(f"first {_FIRST_TASKS} tasks")
    axes[0, 1].set_title(f"all tasks, in bins of {size}")
    for axis in axes[-1]:
        axis.set_xlabel("task")
    for axis in axes.flat:
        axis.locator_params("x", integer=True)
    if list(rows) == [""]:
        panels.legend_above(figure, axes[0, 0].lines, num_columns=4)
    return panels.save(figure, path)


def _draw_line(
    axes: Sequence[Any], setting: xr.Dataset, style: MethodStyle, **options: Any
) -> None:
    """Draws one setting into both panels of a row."""
    options["highest"] = 100
    has_run = setting.examples.notnull().values
    tasks = setting.task.values[has_run]
    accuracy = 100 * setting.accuracy.transpose("seed", "task").values[:, has_run]
    start = slice(_FIRST_TASKS)
    panels.draw_curves(axes[0], tasks[start], accuracy[:, start], style, **options)
    size = tasks_per_bin(setting)
    middles = in_bins(tasks[np.newaxis].astype(float), size)[0]
    panels.draw_curves(axes[1], middles, in_bins(accuracy, size), style, **options)

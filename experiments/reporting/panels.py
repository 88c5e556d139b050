"""What the figures of runs are made of: measures, curves with bands, legends."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from experiments.reporting import statistics, tables
from experiments.reporting.styles import MethodStyle, in_words


class Measure(NamedTuple):
    """A variable of the results and how it is drawn."""

    variable: str
    label: str  # Of the axis, with the unit.
    factor: float  # To this unit.
    highest: float  # That it can be, in this unit; the lowest is 0.


MEASURES = (
    Measure("accuracy", "accuracy (%)", 100, 100),
    Measure("error", "squared error", 1, np.inf),
    Measure("dead_units_percent", "dead units (%)", 1, 100),
    Measure("effective_rank_percent", "effective rank (% of width)", 1, 100),
    Measure("weight_magnitude", "mean |w|", 1, np.inf),
)
"""The panels of a figure, in order; the score first, as in the paper."""

_MARKERS_ON_A_CURVE = 6


def measures_of(dataset: xr.Dataset) -> list[Measure]:
    """Returns the measures that a run has taken."""
    return [measure for measure in MEASURES if has_values(dataset, measure.variable)]


def has_values(dataset: xr.Dataset, name: str) -> bool:
    """Whether a variable is there and not NaN throughout."""
    return name in dataset and bool(dataset[name].notnull().any())


def curves(setting: xr.Dataset, measure: Measure) -> xr.DataArray:
    """Returns what to draw of a setting, in the unit of the measure: (seed, task).

    Measures of layers are averaged over them.
    """
    values = setting[measure.variable]
    if "layer" in values.dims:
        values = statistics.over_layers(setting, measure.variable)
    return values.transpose("seed", "task") * measure.factor


def time_axis(dataset: xr.Dataset) -> str:
    """Returns what a run is drawn against, as the label of the axis."""
    return "examples (millions)" if "error" in dataset else "task"


def times(setting: xr.Dataset) -> np.ndarray:
    """Returns the tasks of a setting on that axis."""
    return setting.examples.values / 1e6 if "error" in setting else setting.task.values


def draw_curves(
    axis: Any,
    x: np.ndarray,
    values: np.ndarray,
    style: MethodStyle,
    *,
    highest: float,
    band: str = "half_width",
    band_opacity: float = 0.2,
    marker_at: float | None = None,
    **options: Any,
) -> None:
    """Draws the mean over seeds and its band.

    Args:
      axis: where to draw.
      x: [tasks].
      values: [seeds, tasks].
      style: of the line.
      highest: what values can be at most; bands end there, and at 0.
      band: the field of `statistics.Estimate` that is half of the band's width, or ""
        for none.
      band_opacity: from 0 to 1.
      marker_at: where the first marker is, as a share of their distance; None for none.
      **options: of the line.
    """
    estimates = statistics.estimate(values)
    measured = np.isfinite(estimates.mean)
    x, mean = x[measured], estimates.mean[measured]
    if marker_at is not None and x.size:
        distance = max(1, x.size // _MARKERS_ON_A_CURVE)
        first = int(marker_at * distance)
        options |= {"marker": style.marker, "markevery": (first, distance)}
    axis.plot(x, mean, **{"linewidth": 1.5, "markersize": 4} | style.line() | options)
    if band:
        half_width = np.nan_to_num(getattr(estimates, band)[measured])
        axis.fill_between(
            x,
            np.maximum(mean - half_width, 0),
            np.minimum(mean + half_width, highest),
            color=style.color,
            alpha=band_opacity,
            lw=0,
        )


def subplots(num_rows: int, num_columns: int, **options: Any) -> tuple[Any, Any]:
    """Makes a figure and its axes [rows, columns]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        layout="constrained",
        squeeze=False,
        **{"figsize": (4 * num_columns, 3.2 * num_rows)} | options,
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure and frees its memory; the folder is made if needed."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def legend_above(figure: Any, lines: Sequence[Any], num_columns: int) -> None:
    """Puts one legend for all panels above them; equal labels stand once.

    Args:
      figure: the figure.
      lines: what the legend explains.
      num_columns: of the legend, fewer where the figure is too narrow for as many.
    """
    handles = _first_of_each_label(lines)
    for ncols in range(num_columns, 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=ncols,
            frameon=False,
        )
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def legend_beside(axis: Any, title: str) -> None:
    """Puts the legend of a row right of its last panel; equal labels stand once."""
    legend = axis.legend(
        handles=_first_of_each_label(axis.lines),
        title=title,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        alignment="left",
        handlelength=3.5,
    )
    legend.get_title().set_fontweight("bold")


def _first_of_each_label(lines: Sequence[Any]) -> list[Any]:
    """Leaves out lines whose label an earlier one has."""
    by_label: dict[str, Any] = {}
    for line in lines:
        by_label.setdefault(line.get_label(), line)
    return list(by_label.values())


def cut_outliers(axes: Sequence[Any]) -> None:
    """Ends the axis of values, common to some panels, where the others end.

    A line above ten times the median of the lines' maxima leaves the panel, so that a
    diverging lane does not leave all others flat.
    """
    lines = [line.get_ydata() for axis in axes for line in axis.lines]
    tops = np.array([np.max(line) for line in lines if line.size])
    limit = 10 * np.median(tops) if tops.size else 0
    if limit > 0 and tops.max() > limit:
        # The margins were chosen for the whole range, outliers included.
        top = tops[tops <= limit].max()
        bottom = min(np.min(line) for line in lines if line.size)
        margin = 0.05 * (top - bottom)
        for axis in axes:
            axis.set_ylim(bottom - margin, top + margin)


def describe(labels: Mapping[str, Any]) -> str:
    """Writes the case of a setting, if it is named, and its hyper-parameters."""
    return ", ".join(
        in_words(str(value))
        if name == "case"
        else f"{in_words(name)} {tables.label(value)}"
        for name, value in labels.items()
    )

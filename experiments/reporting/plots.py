"""The figures of a run, and their parts: measures, curves, legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from experiments.reporting import files, run_results, statistics, survival, tables
from experiments.reporting.statistics import in_bins, tasks_per_bin
from experiments.reporting.styles import (
    FAMILIES,
    REFERENCES,
    MethodStyle,
    distinct_styles,
    in_words,
    method_style,
    position,
)

if TYPE_CHECKING:
    import xarray as xr

# Most lines in one panel.
_MOST_LINES = 8
# Most cases that get separate rows, if there are more lines.
_MOST_ROWS_OF_CASES = 4
# Number of tasks in the left panels of the figure of bins.
_FIRST_TASKS = 10
_MARKERS_ON_A_CURVE = 6

Settings: TypeAlias = "list[tuple[dict[str, Any], xr.Dataset]]"
"""The labels of a setting (its case and swept values), and its results."""


class Measure(NamedTuple):
    """A variable of the results, and how it is drawn."""

    variable: str
    label: str  # Label of the axis, with the unit.
    factor: float  # Factor to this unit.
    highest: float  # Largest possible value, in this unit; the smallest is 0.


MEASURES = (
    Measure("accuracy", "accuracy (%)", 100, 100),
    Measure("error", "squared error", 1, np.inf),
    Measure("dead_units_percent", "dead units (%)", 1, 100),
    Measure("effective_rank_percent", "effective rank (% of width)", 1, 100),
    Measure("weight_magnitude", "mean |w|", 1, np.inf),
)
"""The panels of a figure, in order; the score first, as in the paper."""


def draw_run(dataset: xr.Dataset, run: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures of a run into its folder `figures`.

    Args:
      dataset: its results.
      run: the run folder, which may contain a replacement log.

    Returns:
      The files written.
    """
    draw_learning = draw_errors if "error" in dataset else draw
    written = draw_learning(dataset, run / files.FIGURES_FOLDER)
    if written and tasks_per_bin(dataset) > 1:
        written.append(_draw_bins(dataset, run / files.FIGURES_FOLDER))
    written += _draw_last_phase(dataset, run / files.FIGURES_FOLDER)
    log = run / files.REPLACEMENTS_FILE
    if log.exists():
        lives = survival.read_lives(log, dataset)
        written.append(survival.draw_survival(run / files.FIGURES_FOLDER, lives))
    return written


def draw(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all measures of a run against tasks, one line per setting.

    Up to eight settings share one row of panels, with bands of 95 % confidence
    intervals of the mean over seeds. More settings are drawn without bands in several
    rows: one for each of up to four cases, or one for each family of methods, with the
    references in every row and the settings of a case in the same style.

    Args:
      dataset: results of a run.
      folder: the folder to write to, created if needed.

    Returns:
      The files written; none if every lane diverged in the first task.
    """
    settings = _settings(dataset)
    if not settings or not measures_of(dataset):
        return []
    return [draw_settings(settings, folder / files.LEARNING_FIGURE)]


def draw_settings(settings: Settings, path: pathlib.Path) -> pathlib.Path:
    """Draws all measures of some settings, as `draw` does for a run.

    Args:
      settings: at least one setting, all with the same measures.
      path: the file to write.

    Returns:
      The path.
    """
    first = settings[0][1]
    measures = [
        measure
        for measure in MEASURES
        if any(has_values(one, measure.variable) for _, one in settings)
    ]
    rows = rows_of(sorted(settings, key=lambda one: position(one[0]["case"])))
    figure, axes = subplots(len(rows), len(measures), sharey="col")
    for row_axes, (title, row) in zip(axes, rows.items(), strict=True):
        for axis, measure in zip(row_axes, measures, strict=True):
            for number, (label, style, setting) in enumerate(lines_of(row)):
                draw_curves(
                    axis,
                    times(setting),
                    curves(setting, measure).values,
                    style,
                    highest=measure.highest,
                    band="half_width" if len(settings) <= _MOST_LINES else "",
                    band_opacity=min(0.2, 0.8 / len(row)),
                    marker_at=number / len(row) if len(row) > 2 else None,
                    label=label,
                )
            axis.set_ylabel(measure.label)
            axis.tick_params(labelleft=True)
        if title:
            legend_beside(row_axes[-1], title)
    for axis in axes[-1]:
        axis.set_xlabel(time_axis(first))
    for column, measure in zip(axes.T, measures, strict=True):
        if np.isinf(measure.highest):
            cut_outliers(column)
    if list(rows) == [""]:
        legend_above(figure, axes[0, 0].lines, num_columns=len(measures))
    return save(figure, path)


def draw_errors(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the squared error of a regression against the examples seen.

    There is one panel per activation, with one line for each case and swept value and a
    band of one standard error of the mean over seeds. The linear model, or the best of
    several, is a dashed line in all panels. Panels share the scale of the errors, and
    one legend if it applies to all. With more than eight lines in a panel, all measures
    are drawn as in `draw`.

    Args:
      dataset: results of a run, with its config among the attributes.
      folder: the folder to write to, created if needed.

    Returns:
      The files written; none if every lane diverged in the first task.
    """
    if not has_values(dataset, "error"):
        return []
    grouped = _by_activation(dataset)
    if max(map(len, grouped.values())) > _MOST_LINES:
        return draw(dataset, folder)
    baselines = grouped.pop("linear", {}) if len(grouped) > 1 else {}
    best = min(
        (setting for _, setting in baselines.values()),
        key=lambda one: float(one.error.mean()),
        default=None,
    )
    share_legend = len({tuple(settings) for settings in grouped.values()}) == 1
    num_columns = min(len(grouped), 3)
    figure, axes = subplots(-(-len(grouped) // num_columns), num_columns, sharey=True)
    for axis, (activation, settings) in zip(axes.flat, grouped.items(), strict=False):
        axis.set_title(in_words(activation))
        axis.set_xlabel(time_axis(dataset))
        axis.set_ylabel("squared error")
        axis.tick_params(labelleft=True)
        styles = distinct_styles({label: case for label, (case, _) in settings.items()})
        for label, (_, setting) in settings.items():
            _draw_error(axis, setting, styles[label], label=label)
        if best is not None:
            linear = method_style("linear")._replace(color="gray", dashes="--")
            _draw_error(axis, best, linear, label="linear")
        if not share_legend:
            axis.legend(frameon=False, fontsize="small")
    if share_legend:
        legend_above(figure, axes[0, 0].lines, num_columns + 1)
    for axis in axes.flat[len(grouped) :]:
        axis.remove()
    return [save(figure, folder / files.LEARNING_FIGURE)]


def _draw_bins(dataset: xr.Dataset, folder: pathlib.Path) -> pathlib.Path:
    """Draws the accuracy in bins, with linear models in all panels."""
    config = json.loads(dataset.attrs["config"])
    linear = [
        name
        for name, case in config["cases"].items()
        if not (config | case)["hidden_layers"] and not (config | case)["conv_channels"]
    ]
    settings = _settings(dataset)
    networks = [one for one in settings if one[0]["case"] not in linear]
    baselines = [one for labels, one in settings if labels["case"] in linear]
    if not networks:
        networks, baselines = settings, []
    rows = rows_of(sorted(networks, key=lambda one: position(one[0]["case"])))
    lines = {title: lines_of(row) for title, row in rows.items()}
    return draw_bins(lines, baselines, folder / files.BINS_FIGURE)


def _draw_last_phase(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the last phase of a run with phases, without its steep first tenth.

    Returns:
      The file written; none if the run has no phases or has not come so far.
    """
    phase_tasks = json.loads(dataset.attrs.get("config", "{}")).get("phase_tasks", ())
    start = sum(phase_tasks)
    rest = slice(start + (dataset.sizes["task"] - start) // 10, None)
    if not phase_tasks or not has_values(dataset.isel(task=rest), "accuracy"):
        return []
    settings = [(labels, one.isel(task=rest)) for labels, one in _settings(dataset)]
    return [draw_settings(settings, folder / files.LAST_PHASE_FIGURE)]


def _settings(dataset: xr.Dataset) -> Settings:
    """Returns the settings that were run, without labels that never differ."""
    settings = list(run_results.settings_of(dataset))
    seen: dict[tuple[str, str], set[Any]] = {}
    for labels, _ in settings:
        for name, value in labels.items():
            seen.setdefault((labels["case"], name), set()).add(value)
    return [
        (
            {
                name: value
                for name, value in labels.items()
                if name == "case" or len(seen[labels["case"], name]) > 1
            },
            setting,
        )
        for labels, setting in settings
    ]


def rows_of(settings: Settings) -> dict[str, Settings]:
    """Splits settings into rows of panels, by title; "" means no title."""
    if len(settings) <= _MOST_LINES:
        return {"": settings}
    cases = dict.fromkeys(labels["case"] for labels, _ in settings)
    if len(cases) <= _MOST_ROWS_OF_CASES:
        return {
            in_words(case): [
                ({name: value for name, value in labels.items() if name != "case"}, one)
                for labels, one in settings
                if labels["case"] == case
            ]
            for case in cases
        }
    families = {case: method_style(case).family for case in cases}
    present = [
        family
        for family in FAMILIES
        if family != REFERENCES and family in families.values()
    ]
    return {
        family: [
            (labels, setting)
            for labels, setting in settings
            if families[labels["case"]] in (REFERENCES, family)
        ]
        for family in present or [REFERENCES]
    }


def lines_of(row: Settings) -> list[tuple[str, MethodStyle, xr.Dataset]]:
    """Returns the label, style and results of each line of a row.

    If there are too many lines, the settings of a case share label and style.
    """
    cases = [labels.get("case", "") for labels, _ in row]
    names = [describe(labels) for labels, _ in row]
    if len(row) > _MOST_LINES and all(cases):
        names = [in_words(case) for case in cases]
    styles = distinct_styles(dict(zip(names, cases, strict=True)))
    return [
        (name, styles[name], setting)
        for name, (_, setting) in zip(names, row, strict=True)
    ]


def _by_activation(dataset: xr.Dataset) -> dict[str, dict[str, tuple[str, xr.Dataset]]]:
    """Groups the settings by activation ("linear" without hidden layers) and label.

    Returns:
      The case and results of each setting, by activation and label.
    """
    config = json.loads(dataset.attrs["config"])
    fields = {name: config | case for name, case in config["cases"].items()}
    activations = {
        name: case["activation"] if case["hidden_layers"] else "linear"
        for name, case in fields.items()
    }
    grouped: dict[str, dict[str, tuple[str, xr.Dataset]]] = {}
    for labels, setting in _settings(dataset):
        case = labels["case"]
        activation = activations[case]
        if list(activations.values()).count(activation) == 1 and len(labels) > 1:
            del labels["case"]
        if setting.error.notnull().any():
            label = describe(labels)
            grouped.setdefault(activation, {})[label] = case, setting
    return grouped


def _draw_error(axis: Any, setting: xr.Dataset, style: MethodStyle, label: str) -> None:
    errors = setting.error.transpose("seed", "task").values
    draw_curves(
        axis,
        times(setting),
        errors,
        style,
        highest=np.inf,
        band="standard_error",
        label=label,
    )


def draw_bins(
    rows: Mapping[str, list[tuple[str, MethodStyle, xr.Dataset]]],
    baselines: Sequence[xr.Dataset],
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws the accuracy of the first ten tasks, and of all tasks in bins.

    The layout is that of the paper's figure 1, Continual ImageNet. Bands are 95 %
    confidence intervals of the mean over seeds; rows with too many lines have none.

    Args:
      rows: the lines of each row of panels, by title; "" means no title.
      baselines: results of linear models, drawn as dashed lines in all panels.
      path: the file to write.

    Returns:
      The path.
    """
    figure, axes = subplots(len(rows), 2, sharey="row")
    linear = method_style("linear")._replace(color="gray", dashes="--")
    for row_axes, (title, lines) in zip(axes, rows.items(), strict=True):
        band = "half_width" if len(lines) <= _MOST_LINES else ""
        for label, style, setting in lines:
            _draw_binned(row_axes, setting, style, band=band, label=label)
        for setting in baselines:
            _draw_binned(row_axes, setting, linear, band="", label="linear")
        row_axes[0].set_ylabel("test accuracy (%)")
        row_axes[0].set_ylim(top=min(row_axes[0].get_ylim()[1], 101))
        row_axes[1].tick_params(labelleft=True)
        if title:
            legend_beside(row_axes[-1], title)
    size = max(tasks_per_bin(lines[0][2]) for lines in rows.values())
    axes[0, 0].set_title(f"first {_FIRST_TASKS} tasks")
    axes[0, 1].set_title(f"all tasks, in bins of {size}")
    for axis in axes[-1]:
        axis.set_xlabel("task")
    for axis in axes.flat:
        axis.locator_params("x", integer=True)
    if list(rows) == [""]:
        legend_above(figure, axes[0, 0].lines, num_columns=4)
    return save(figure, path)


def _draw_binned(
    axes: Sequence[Any], setting: xr.Dataset, style: MethodStyle, **options: Any
) -> None:
    """Draws one setting into both panels of a row."""
    options["highest"] = 100
    has_run = setting.examples.notnull().values
    tasks = setting.task.values[has_run]
    accuracy = 100 * setting.accuracy.transpose("seed", "task").values[:, has_run]
    start = slice(_FIRST_TASKS)
    draw_curves(axes[0], tasks[start], accuracy[:, start], style, **options)
    size = tasks_per_bin(setting)
    middles = in_bins(tasks[np.newaxis].astype(float), size)[0]
    draw_curves(axes[1], middles, in_bins(accuracy, size), style, **options)


def measures_of(dataset: xr.Dataset) -> list[Measure]:
    """Returns the measures that a run has."""
    return [measure for measure in MEASURES if has_values(dataset, measure.variable)]


def has_values(dataset: xr.Dataset, name: str) -> bool:
    """Whether a variable exists and is not entirely NaN."""
    return name in dataset and bool(dataset[name].notnull().any())


def curves(setting: xr.Dataset, measure: Measure) -> xr.DataArray:
    """Returns the values of a measure for a setting, in its unit: (seed, task).

    Measures of layers are averaged over the layers.
    """
    values = setting[measure.variable]
    if "layer" in values.dims:
        values = statistics.over_layers(setting, measure.variable)
    return values.transpose("seed", "task") * measure.factor


def time_axis(dataset: xr.Dataset) -> str:
    """Returns the label of the time axis of a run."""
    return "examples (millions)" if "error" in dataset else "task"


def times(setting: xr.Dataset) -> np.ndarray:
    """Returns the positions of a setting's tasks on the time axis."""
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
      axis: the matplotlib axes.
      x: [tasks].
      values: [seeds, tasks].
      style: style of the line.
      highest: largest possible value; bands are cut there, and at 0.
      band: the field of `statistics.Estimate` that is half of the band's width, or ""
        for no band.
      band_opacity: from 0 to 1.
      marker_at: position of the first marker, as a fraction of the distance between
        markers; None for no markers.
      **options: further options of the line.
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
    """Creates a figure and its axes [rows, columns]."""
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
    """Writes a figure and frees its memory; creates the folder if needed."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def legend_above(figure: Any, lines: Sequence[Any], num_columns: int) -> None:
    """Puts one legend for all panels above them; equal labels appear once.

    Args:
      figure: the figure.
      lines: the lines in the legend.
      num_columns: columns of the legend, fewer if the figure is too narrow.
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
    """Puts the legend of a row right of its last panel; equal labels appear once."""
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
    """Removes lines with the label of an earlier line."""
    by_label: dict[str, Any] = {}
    for line in lines:
        by_label.setdefault(line.get_label(), line)
    return list(by_label.values())


def cut_outliers(axes: Sequence[Any]) -> None:
    """Limits the y-axis, shared by some panels, to the lines that are not outliers.

    A line above ten times the median of the lines' maxima leaves the panel, so that a
    diverging lane does not flatten all others.
    """
    lines = [line.get_ydata() for axis in axes for line in axis.lines]
    tops = np.array([np.max(line) for line in lines if line.size])
    limit = 10 * np.median(tops) if tops.size else 0
    if limit > 0 and tops.max() > limit:
        # The existing margins are for the whole range, including outliers.
        top = tops[tops <= limit].max()
        bottom = min(np.min(line) for line in lines if line.size)
        margin = 0.05 * (top - bottom)
        for axis in axes:
            axis.set_ylim(bottom - margin, top + margin)


def describe(labels: Mapping[str, Any]) -> str:
    """Writes the case of a setting, if it has one, and its hyperparameters."""
    return ", ".join(
        in_words(str(value))
        if name == "case"
        else f"{in_words(name)} {tables.label(value)}"
        for name, value in labels.items()
    )

"""The figures of a run."""

import json
import pathlib
from typing import Any

import numpy as np
import xarray as xr

from experiments.reporting import binned_plots, panels, statistics, survival
from experiments.reporting.bins import tasks_per_bin
from experiments.reporting.styles import (
    FAMILIES,
    REFERENCES,
    MethodStyle,
    distinct_styles,
    in_words,
    method_style,
    position,
)

FIGURES_FOLDER = "figures"
FIGURE_FILE = "learning.png"
FIGURE_FILES = (FIGURE_FILE, binned_plots.FIGURE_FILE, survival.FIGURE_FILE)
"""All that `draw_run` can write there; `--overwrite` deletes them with a run."""

# Lines that one panel can hold.
_MOST_LINES = 8
# Cases that each have a row of their own, if there are more lines.
_MOST_ROWS_OF_CASES = 4

Settings = list[tuple[dict[str, Any], xr.Dataset]]
"""What tells a setting apart (its case and swept values), and its results."""


def draw_run(dataset: xr.Dataset, run: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures of a run into its folder `figures`.

    Args:
      dataset: its results.
      run: the run folder, which may hold a log of replacements.

    Returns:
      The files written.
    """
    draw_learning = draw_errors if "error" in dataset else draw
    written = draw_learning(dataset, run / FIGURES_FOLDER)
    if written and tasks_per_bin(dataset) > 1:
        written.append(_draw_bins(dataset, run / FIGURES_FOLDER))
    log = run / survival.LOG_FILE
    if log.exists():
        lives = survival.read_lives(log, dataset)
        written.append(survival.draw_survival(run / FIGURES_FOLDER, lives))
    return written


def draw(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all measures of a run against tasks, one line for each setting.

    Up to eight settings share one row of panels, with bands of 95 % confidence
    intervals of the mean over seeds. More are drawn without bands in several rows: one
    for each of up to four cases, or one for each family of methods, with the references
    in each and the settings of a case in the same style.

    Args:
      dataset: results of a run.
      folder: where to write; made if needed.

    Returns:
      The files written; none if every lane diverged at once.
    """
    settings = _settings(dataset)
    if not settings or not panels.measures_of(dataset):
        return []
    return [draw_settings(settings, folder / FIGURE_FILE)]


def draw_settings(settings: Settings, path: pathlib.Path) -> pathlib.Path:
    """Draws all measures of some settings, as `draw` does for those of a run.

    Args:
      settings: at least one, of the same measures.
      path: the file to write.

    Returns:
      The path.
    """
    first = settings[0][1]
    measures = [
        measure
        for measure in panels.MEASURES
        if any(panels.has_values(one, measure.variable) for _, one in settings)
    ]
    rows = _rows(sorted(settings, key=lambda one: position(one[0]["case"])))
    figure, axes = panels.subplots(len(rows), len(measures), sharey="col")
    for row_axes, (title, row) in zip(axes, rows.items(), strict=True):
        for axis, measure in zip(row_axes, measures, strict=True):
            for number, (label, style, setting) in enumerate(_lines(row)):
                panels.draw_curves(
                    axis,
                    panels.times(setting),
                    panels.curves(setting, measure).values,
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
            panels.legend_beside(row_axes[-1], title)
    for axis in axes[-1]:
        axis.set_xlabel(panels.time_axis(first))
    for column, measure in zip(axes.T, measures, strict=True):
        if np.isinf(measure.highest):
            panels.cut_outliers(column)
    if list(rows) == [""]:
        panels.legend_above(figure, axes[0, 0].lines, num_columns=len(measures))
    return panels.save(figure, path)


def draw_errors(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the squared error of a regression against the examples seen.

    One panel for each activation, in it one line for each case and swept value, with a
    band of one standard error of the mean over seeds. The linear model is a dashed line
    in all panels: of several, the one with the least error. Panels share the scale of
    the errors, and one legend if it holds for all. With more than eight lines in a
    panel, all measures are drawn as by `draw`.

    Args:
      dataset: results of a run, its config among the attributes.
      folder: where to write; made if needed.

    Returns:
      The files written; none if every lane diverged at once.
    """
    if not panels.has_values(dataset, "error"):
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
    figure, axes = panels.subplots(
        -(-len(grouped) // num_columns), num_columns, sharey=True
    )
    for axis, (activation, settings) in zip(axes.flat, grouped.items(), strict=False):
        axis.set_title(in_words(activation))
        axis.set_xlabel(panels.time_axis(dataset))
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
        panels.legend_above(figure, axes[0, 0].lines, num_columns + 1)
    for axis in axes.flat[len(grouped) :]:
        axis.remove()
    return [panels.save(figure, folder / FIGURE_FILE)]


def _draw_bins(dataset: xr.Dataset, folder: pathlib.Path) -> pathlib.Path:
    """Draws the accuracy in bins, linear models in all panels."""
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
    rows = _rows(sorted(networks, key=lambda one: position(one[0]["case"])))
    lines = {title: _lines(row) for title, row in rows.items()}
    return binned_plots.draw_bins(lines, baselines, folder / binned_plots.FIGURE_FILE)


def _settings(dataset: xr.Dataset) -> Settings:
    """Returns the settings that were run, without labels that tell none apart."""
    settings = list(statistics.settings_of(dataset))
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


def _rows(settings: Settings) -> dict[str, Settings]:
    """Spreads settings over rows of panels, by title; "" is a row that needs none."""
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


def _lines(row: Settings) -> list[tuple[str, MethodStyle, xr.Dataset]]:
    """Returns the label, style and results of each line of a row.

    If there are too many, the settings of a case share label and style.
    """
    cases = [labels.get("case", "") for labels, _ in row]
    names = [panels.describe(labels) for labels, _ in row]
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
      For each activation the case and the results of each labeled setting.
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
            label = panels.describe(labels)
            grouped.setdefault(activation, {})[label] = case, setting
    return grouped


def _draw_error(axis: Any, setting: xr.Dataset, style: MethodStyle, label: str) -> None:
    errors = setting.error.transpose("seed", "task").values
    panels.draw_curves(
        axis,
        panels.times(setting),
        errors,
        style,
        highest=np.inf,
        band="standard_error",
        label=label,
    )

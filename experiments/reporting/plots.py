"""The figures of a run."""

import json
import pathlib
from typing import Any

import numpy as np
import xarray as xr

from experiments.reporting import statistics, survival, tables

FIGURES_FOLDER = "figures"
FIGURE_FILE = "learning.png"

# Variable, axis label, factor, whether it is a measure of layers.
_PANELS = (
    ("accuracy", "online accuracy (%)", 100, False),
    ("dead_units", "dead units (%)", 100, True),
    ("effective_rank", "effective rank", 1, True),
    ("weight_magnitude", "mean |w|", 1, True),
)


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
    log = run / survival.LOG_FILE
    if log.exists():
        lives = survival.read_lives(log, dataset)
        written.append(survival.draw_survival(run / FIGURES_FOLDER, lives))
    return written


def draw(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all measures of a run against tasks, one line for each setting.

    Bands are 95 % confidence intervals of the mean over seeds.

    Args:
      dataset: results of a run.
      folder: where to write; made if needed.

    Returns:
      The files written; none if every lane diverged at once.
    """
    panels = [panel for panel in _PANELS if _has_values(dataset, panel[0])]
    if not panels:
        return []
    figure, axes = _subplots(1, len(panels))
    for labels, setting in statistics.settings_of(dataset):
        label = ", ".join(_describe(name, value) for name, value in labels.items())
        for axis, (name, _, factor, is_layered) in zip(axes[0], panels, strict=True):
            values = (
                statistics.over_layers(setting, name) if is_layered else setting[name]
            )
            tasks = values.task.values
            _draw_line(axis, tasks, values * factor, "half_width", label=label)
    for axis, (_, axis_label, _, _) in zip(axes[0], panels, strict=True):
        axis.set_xlabel("task")
        axis.set_ylabel(axis_label)
    axes[0, 0].legend(frameon=False)
    return [_save(figure, folder)]


def draw_errors(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the squared error of a regression against the examples seen.

    One panel for each activation, in it one line for each case and swept value, with a
    band of one standard error of the mean over seeds. The linear model is a dashed line
    in all panels: of several, the one with the least error. Panels share the scale of
    the errors, and one legend if it holds for all.

    Args:
      dataset: results of a run, its config among the attributes.
      folder: where to write; made if needed.

    Returns:
      The files written; none if every lane diverged at once.
    """
    if not _has_values(dataset, "error"):
        return []
    panels = _by_activation(dataset)
    baselines = panels.pop("linear") if "linear" in panels and len(panels) > 1 else {}
    best = min(
        baselines.values(), key=lambda one: float(one.error.mean()), default=None
    )
    share_legend = len({tuple(settings) for settings in panels.values()}) == 1
    num_columns = min(len(panels), 3)
    figure, axes = _subplots(-(-len(panels) // num_columns), num_columns, sharey=True)
    for axis, (activation, settings) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(activation.replace("_", " "))
        axis.set_xlabel("examples (millions)")
        axis.set_ylabel("squared error")
        axis.tick_params(labelleft=True)
        for label, setting in settings.items():
            _draw_error(axis, setting, label=label)
        if best is not None:
            _draw_error(axis, best, label="linear", color="gray", linestyle="--")
        if not share_legend:
            axis.legend(frameon=False, fontsize="small")
    if share_legend:
        figure.legend(
            handles=list(axes[0, 0].lines),
            loc="outside upper center",
            ncols=num_columns + 1,
            frameon=False,
        )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return [_save(figure, folder)]


def _by_activation(dataset: xr.Dataset) -> dict[str, dict[str, xr.Dataset]]:
    """Groups the settings by activation ("linear" without hidden layers) and label."""
    config = json.loads(dataset.attrs["config"])
    fields = {name: config | case for name, case in config["cases"].items()}
    activations = {
        name: case["activation"] if case["hidden_layers"] else "linear"
        for name, case in fields.items()
    }
    panels: dict[str, dict[str, xr.Dataset]] = {}
    for labels, setting in statistics.settings_of(dataset):
        activation = activations[labels["case"]]
        if list(activations.values()).count(activation) == 1 and len(labels) > 1:
            del labels["case"]
        label = ", ".join(_describe(name, value) for name, value in labels.items())
        if setting.error.notnull().any():
            panels.setdefault(activation, {})[label] = setting
    return panels


def _draw_error(axis: Any, setting: xr.Dataset, **style: Any) -> None:
    millions = setting.examples.values / 1e6
    _draw_line(axis, millions, setting.error, "standard_error", **style)


def _draw_line(
    axis: Any, x: np.ndarray, values: xr.DataArray, band: str, **style: Any
) -> None:
    """Draws the mean over seeds against x [tasks], and its band.

    Args:
      axis: where to draw.
      x: [tasks].
      values: dimensions seed and task.
      band: the field of `statistics.Estimate` that is half of the band's width.
      **style: of the line.
    """
    curve = values.transpose("seed", "task").values
    estimates = [statistics.estimate(column) for column in curve.T]
    mean = np.array([estimate.mean for estimate in estimates])
    half_width = np.nan_to_num([getattr(estimate, band) for estimate in estimates])
    measured = np.isfinite(mean)
    x, mean, half_width = x[measured], mean[measured], half_width[measured]
    (line,) = axis.plot(x, mean, linewidth=1.5, **style)
    color = line.get_color()
    axis.fill_between(
        x, mean - half_width, mean + half_width, color=color, alpha=0.2, lw=0
    )


def _subplots(num_rows: int, num_columns: int, **options: Any) -> tuple[Any, Any]:
    """Makes a figure and its axes [rows, columns]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(4 * num_columns, 3.2 * num_rows),
        layout="constrained",
        squeeze=False,
        **options,
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, folder: pathlib.Path) -> pathlib.Path:
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FIGURE_FILE
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _describe(name: str, value: Any) -> str:
    if name == "case":
        return str(value).replace("_", " ")
    return f"{name.replace('_', ' ')} {tables.label(value)}"


def _has_values(dataset: xr.Dataset, name: str) -> bool:
    return name in dataset and bool(dataset[name].notnull().any())

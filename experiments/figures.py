"""Draws the figures of finished runs.

    python -m experiments.figures RUN ...

Each RUN is a run folder; its figures go to RUN/figures.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import app
import numpy as np
import xarray as xr

from experiments import replacement_log, results, summary

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
    written = draw_learning(dataset, run / "figures")
    log = run / replacement_log.LOG_FILE
    if log.exists():
        lives = replacement_log.read_lives(log, dataset)
        written.append(replacement_log.draw_survival(run / "figures", lives))
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
    for labels, setting in summary.settings_of(dataset):
        label = ", ".join(_describe(name, value) for name, value in labels.items())
        for axis, (name, _, factor, is_layered) in zip(axes[0], panels, strict=True):
            values = summary.over_layers(setting, name) if is_layered else setting[name]
            _draw_line(axis, values * factor, label)
    for axis, (_, axis_label, _, _) in zip(axes[0], panels, strict=True):
        axis.set_xlabel("task")
        axis.set_ylabel(axis_label)
    axes[0, 0].legend(frameon=False)
    return [_save(figure, folder)]


def draw_errors(dataset: xr.Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the squared error of a regression against the examples seen.

    One panel for each activation, in it one line for each case and swept value, with a
    band of one standard error of the mean over seeds. The linear model is a dashed line
    in all panels: of several, the one with the least error.

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
    num_columns = min(len(panels), 3)
    figure, axes = _subplots(-(-len(panels) // num_columns), num_columns)
    for axis, (activation, settings) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(activation.replace("_", " "))
        axis.set_xlabel("examples (millions)")
        axis.set_ylabel("squared error")
        for label, setting in settings.items():
            _draw_error_line(axis, setting, label=label)
        if best is not None:
            _draw_error_line(axis, best, label="linear", color="gray", linestyle="--")
        axis.legend(frameon=False, fontsize="small")
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
    for labels, setting in summary.settings_of(dataset):
        activation = activations[labels["case"]]
        if list(activations.values()).count(activation) == 1 and len(labels) > 1:
            del labels["case"]
        label = ", ".join(_describe(name, value) for name, value in labels.items())
        if setting.error.notnull().any():
            panels.setdefault(activation, {})[label] = setting
    return panels


def _draw_error_line(axis: Any, setting: xr.Dataset, **style: Any) -> None:
    error = setting.error.transpose("seed", "task").values
    examples = setting.examples.values / 1e6
    measured = np.isfinite(error).any(axis=0)
    error, examples = error[:, measured], examples[measured]
    num_seeds = np.isfinite(error).sum(axis=0)
    mean = np.nanmean(error, axis=0)
    deviation = np.sqrt(
        np.nansum((error - mean) ** 2, 0) / np.maximum(num_seeds - 1, 1)
    )
    (line,) = axis.plot(examples, mean, linewidth=1.5, **style)
    _draw_band(axis, examples, mean, deviation / np.sqrt(num_seeds), line)


def _draw_line(axis: Any, values: xr.DataArray, label: str) -> None:
    curve = values.transpose("seed", "task").values
    estimates = [summary.estimate(column) for column in curve.T]
    mean = np.array([estimate.mean for estimate in estimates])
    half_width = np.nan_to_num([estimate.half_width for estimate in estimates])
    measured = np.isfinite(mean)
    tasks = values.task.values[measured]
    mean, half_width = mean[measured], half_width[measured]
    (line,) = axis.plot(tasks, mean, label=label, linewidth=1.5)
    _draw_band(axis, tasks, mean, half_width, line)


def _draw_band(
    axis: Any, x: np.ndarray, mean: np.ndarray, half_width: np.ndarray, line: Any
) -> None:
    low, high = mean - half_width, mean + half_width
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)


def _subplots(num_rows: int, num_columns: int) -> tuple[Any, Any]:
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
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, folder: pathlib.Path) -> pathlib.Path:
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "learning.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _describe(name: str, value: Any) -> str:
    if name == "case":
        return str(value).replace("_", " ")
    return f"{name.replace('_', ' ')} {summary.label(value)}"


def _has_values(dataset: xr.Dataset, name: str) -> bool:
    return name in dataset and bool(dataset[name].notnull().any())


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        raise app.UsageError("Name at least one run folder.")
    for run in arguments[1:]:
        for path in draw_run(results.load(run), pathlib.Path(run)):
            print(path)


if __name__ == "__main__":
    app.run(_main)

"""Draws the figures of finished runs.

    python -m experiments.figures RUN ...

Each RUN is a run folder; its figures go to RUN/figures.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

from absl import app
import numpy as np
import xarray as xr

from experiments import replacement_log, results, summary

# Variable, axis label, factor, whether it is a measure of layers.
_PANELS = (
    ("accuracy", "online accuracy (%)", 100, False),
    ("error", "squared error", 1, False),
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
    written = draw(dataset, run / "figures")
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    panels = [panel for panel in _PANELS if _has_values(dataset, panel[0])]
    if not panels:
        return []
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4 * len(panels), 3.2),
        layout="constrained",
        squeeze=False,
    )
    for labels, setting in summary.settings_of(dataset):
        label = ", ".join(_describe(name, value) for name, value in labels.items())
        for axis, (name, _, factor, is_layered) in zip(axes[0], panels, strict=True):
            values = summary.over_layers(setting, name) if is_layered else setting[name]
            _draw_line(axis, values * factor, label)
    for axis, (_, axis_label, _, _) in zip(axes[0], panels, strict=True):
        axis.set_xlabel("task")
        axis.set_ylabel(axis_label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    path = folder / "learning.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return [path]


def _draw_line(axis: Any, values: xr.DataArray, label: str) -> None:
    curve = values.transpose("seed", "task").values
    estimates = [summary.estimate(column) for column in curve.T]
    mean = np.array([estimate.mean for estimate in estimates])
    half_width = np.nan_to_num([estimate.half_width for estimate in estimates])
    measured = np.isfinite(mean)
    tasks = values.task.values[measured]
    mean, half_width = mean[measured], half_width[measured]
    (line,) = axis.plot(tasks, mean, label=label, linewidth=1.5)
    axis.fill_between(
        tasks,
        mean - half_width,
        mean + half_width,
        color=line.get_color(),
        alpha=0.2,
        lw=0,
    )


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

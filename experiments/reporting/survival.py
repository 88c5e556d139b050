"""How long units live: the log of replacements, read and drawn."""

from collections.abc import Mapping
import csv
import math
import pathlib
from typing import Any

import numpy as np
import xarray as xr

from experiments.reporting.run_results import swept_names

LOG_FILE = "replacements.csv"
FIGURE_FILE = "survival.png"


def read_lives(
    path: pathlib.Path, dataset: xr.Dataset
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Turns the log of replacements into the lives of units.

    Args:
      path: the CSV file.
      dataset: the results of the run.

    Returns:
      For each case and layer with a replacement the ages at death, and the ages of the
      units that were alive at the end, both integer arrays over all lanes.
    """
    lane_names = [*swept_names(dataset), "seed"]
    steps = {str(case): _steps(dataset, str(case)) for case in dataset.case.values}
    deaths: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], dict[Any, int]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["task"]) >= len(steps[row["case"]]):
                continue  # The run goes on, and the results do not hold it yet.
            group = row["case"], row["layer"]
            lane = (row[name] for name in lane_names)
            time = int(row["task"]) * steps[row["case"]][0] + int(row["step"]) + 1
            deaths.setdefault(group, []).append(int(row["age"]))
            last.setdefault(group, {})[*lane, row["unit"]] = int(time)
    lives = {}
    for (case, layer), ages in deaths.items():
        lanes, end = _num_lanes(dataset, case), int(steps[case][-1])
        num_units = int(dataset.num_units.sel(case=case, layer=layer)) * lanes
        births = np.zeros(num_units, int)
        births[: len(last[case, layer])] = list(last[case, layer].values())
        lives[case, layer] = np.array(ages), end - births
    return lives


def _steps(dataset: xr.Dataset, case: str) -> np.ndarray:
    """Returns the updates that a lane of a case has made by each task that is done."""
    steps = dataset.steps.sel(case=case)
    steps = steps.max([name for name in steps.dims if name != "task"])
    return steps.dropna("task").values


def _num_lanes(dataset: xr.Dataset, case: str) -> int:
    """Counts the lanes of a case; others may have more points than it."""
    if "point" in dataset.dims:
        has_run = dataset.steps.sel(case=case).notnull().any("task")
        return int(has_run.sum()) * dataset.sizes["seed"]
    lane_names = (*swept_names(dataset), "seed")
    return math.prod(dataset.sizes[name] for name in lane_names)


def survival(deaths: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan-Meier estimate of the probability that a unit outlives an age.

    Args:
      deaths: ages at death, integers.
      alive: ages of units not yet dead.

    Returns:
      The ages at which units died, in ascending order, and the probability to live
      longer than each.

    Source: Kaplan and Meier, "Nonparametric estimation from incomplete observations",
    JASA 53, 1958.
    """
    ages, dying = np.unique(deaths, return_counts=True)
    lives = np.sort(np.concatenate([deaths, alive]))
    at_risk = lives.size - np.searchsorted(lives, ages, side="left")
    return ages, np.cumprod(1 - dying / at_risk)


def draw_survival(
    folder: pathlib.Path, lives: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]
) -> pathlib.Path:
    """Draws the share of units that outlive an age, a line for each case and layer.

    Args:
      folder: where to write; made if needed.
      lives: from `read_lives`.

    Returns:
      The file written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for (case, layer), (deaths, alive) in lives.items():
        ages, share = survival(deaths, alive)
        label = f"{case}, {layer}".replace("_", " ")
        axis.step(ages, 100 * share, where="post", label=label, linewidth=1.5)
    axis.set_xscale("log")
    axis.set_ylim(0, 100)
    axis.set_xlabel("age (updates)")
    axis.set_ylabel("units alive (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / FIGURE_FILE, dpi=150)
    plt.close(figure)
    return folder / FIGURE_FILE

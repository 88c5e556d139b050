"""Reads the replacement log, and draws how long units survive."""

from __future__ import annotations

from collections.abc import Mapping
import csv
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting import files
from experiments.reporting.run_results import lanes_of, swept_names

if TYPE_CHECKING:
    import xarray as xr


def read_lives(
    path: pathlib.Path, dataset: xr.Dataset
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Turns the replacement log into lifetimes of units.

    Args:
      path: the CSV file.
      dataset: the results of the run.

    Returns:
      For each case and layer with a replacement, the ages at replacement and the ages
      of the units at the end, both integer arrays over all lanes.
    """
    lanes = lanes_of(dataset)
    lane_names = [*swept_names(lanes), "seed"]
    cases = {
        case: lanes.isel(lane=lanes.case.values == case)
        for case in np.unique(lanes.case)
    }
    # The updates that a lane of a case has made by the end of each task.
    steps = {case: own.steps[0].dropna("task").values for case, own in cases.items()}
    deaths: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], dict[Any, int]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["task"]) >= len(steps.get(row["case"], ())):
                continue  # The run is unfinished, and its results lag behind.
            group = row["case"], row["layer"]
            lane = (row[name] for name in lane_names)
            time = int(row["task"]) * steps[row["case"]][0] + int(row["step"]) + 1
            deaths.setdefault(group, []).append(int(row["age"]))
            last.setdefault(group, {})[*lane, row["unit"]] = int(time)
    lives = {}
    for (case, layer), ages in deaths.items():
        births = np.zeros(int(cases[case].num_units.sel(layer=layer).sum()), int)
        births[: len(last[case, layer])] = list(last[case, layer].values())
        lives[case, layer] = np.array(ages), int(steps[case][-1]) - births
    return lives


def survival(deaths: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Kaplan-Meier estimate of the probability to outlive an age.

    Args:
      deaths: ages of units when they were replaced, integers.
      alive: ages of units that were not replaced.

    Returns:
      The ages at which units were replaced, in ascending order, and the probability of
      outliving each.

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
    """Draws the fraction of units that outlive an age, one line per case and layer.

    Args:
      folder: the folder to write to, created if needed.
      lives: from `read_lives`.

    Returns:
      The path of the figure.
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
    figure.savefig(folder / files.SURVIVAL_FIGURE, dpi=150)
    plt.close(figure)
    return folder / files.SURVIVAL_FIGURE

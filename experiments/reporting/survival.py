"""Reads the replacement log: which units go, and how long units survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
import csv
import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reporting import files
from experiments.reporting.run_results import lanes_of, swept_names
from experiments.reporting.tables import format_table

if TYPE_CHECKING:
    import xarray as xr

_MATURITY = "maturity_threshold"


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
    for row in _read(path, {case: len(own) for case, own in steps.items()}):
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


def _read(path: pathlib.Path, tasks_done: Mapping[str, int]) -> Iterator[dict]:
    """Yields the lines of the log that belong to tasks in the results."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            # The results of an unfinished run lag behind.
            if int(row["task"]) < tasks_done.get(row["case"], 0):
                yield row


class Replaced(NamedTuple):
    """Which units a case replaced in one setting."""

    case: str
    setting: Mapping[str, str]  # The swept hyperparameters that it takes, as written.
    ages: np.ndarray  # Of the units when they were replaced, integers.
    # The age below which a unit is a newborn, twice the maturity threshold; NaN if the
    # config has none.
    newborn_below: float
    num_full: int  # Lanes and tasks whose log was full, so that the rest is unknown.

    @property
    def newborn_share(self) -> float:
        """The fraction of replacements that hit newborns; NaN if it is not defined."""
        if np.isnan(self.newborn_below):
            return np.nan
        return float(np.mean(self.ages < self.newborn_below))

    @property
    def median_age(self) -> float:
        """The median age at replacement, in updates."""
        return float(np.median(self.ages))


def read_replaced(path: pathlib.Path, dataset: xr.Dataset) -> list[Replaced]:
    """Reads the ages of the units that were replaced, by case and setting.

    A case without a maturity threshold of its own is measured by that of the config, if
    another case has one.

    Args:
      path: the replacement log, a CSV file.
      dataset: the results of the run, with its config among the attributes.

    Returns:
      The cases and settings with a replacement, in the order of the log.
    """
    config = json.loads(dataset.attrs["config"])
    lanes = lanes_of(dataset)
    swept = swept_names(lanes)
    done = {
        case: int(own.examples[0].notnull().sum())
        for case in np.unique(lanes.case)
        for own in [lanes.isel(lane=lanes.case.values == case)]
    }
    found: dict[tuple[str, ...], list[int]] = {}
    numbers: Counter[tuple[str, ...]] = Counter()
    for row in _read(path, done):
        lane = (row["case"], *(row[name] for name in swept))
        found.setdefault(lane, []).append(int(row["age"]))
        numbers[*lane, row["task"], row["seed"]] += 1

    def replaced(lane: tuple[str, ...], ages: list[int]) -> Replaced:
        case, *values = lane
        setting = {name: x for name, x in zip(swept, values, strict=True) if x}
        fields = config | config["cases"][case]
        maturity = setting.get(_MATURITY) or fields.get(_MATURITY, np.nan)
        num_full = sum(
            number >= fields["replacement_log"]
            for (*own, _, _), number in numbers.items()
            if tuple(own) == lane
        )
        return Replaced(case, setting, np.array(ages), 2 * float(maturity), num_full)

    return [replaced(lane, ages) for lane, ages in found.items()]


def replaced_table(run: pathlib.Path, dataset: xr.Dataset) -> str:
    """Returns a table of which units were replaced, one line per case and setting.

    Args:
      run: the run folder.
      dataset: the results of the run.

    Returns:
      The table and what it means; "" if no replacement was logged.
    """
    log = run / files.REPLACEMENTS_FILE
    replaced = read_replaced(log, dataset) if log.exists() else []
    if not replaced:
        return ""
    swept = [name for one in replaced for name in one.setting]
    rows = [
        {
            "case": one.case,
            **{name: one.setting.get(name, "") for name in dict.fromkeys(swept)},
            "replacements": f"{len(one.ages):,}",
            "of newborns %": "-"
            if np.isnan(one.newborn_share)
            else f"{100 * one.newborn_share:.1f}",
            "median age (updates)": f"{one.median_age:,.0f}",
        }
        for one in replaced
    ]
    text = f"{format_table(rows)}\nNewborns are younger than two maturity thresholds."
    num_full = sum(one.num_full for one in replaced)
    if num_full:
        text += (
            f" The log was full in {num_full} tasks of single lanes; replacements "
            "after that are not counted."
        )
    return text


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

    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for (case, layer), (deaths, alive) in lives.items():
        ages, share = survival(deaths, alive)
        label = f"{case}, {layer}".replace("_", " ")
        axis.step(ages, 100 * share, where="post", label=label, linewidth=1.5)
    axis.set_xscale("log")
    axis.set_ylim(0, 100)
    axis.set_xlabel("age (updates)")
    axis.set_ylabel("units alive (%)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / files.SURVIVAL_FIGURE, dpi=150)
    plt.close(figure)
    return folder / files.SURVIVAL_FIGURE

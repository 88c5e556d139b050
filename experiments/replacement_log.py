"""A log of who was replaced: filled on the device, written to a CSV file.

Shapes: C events kept for each lane and task, K replaced at most in one step.
"""

from collections.abc import Mapping, Sequence
import csv
import itertools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from cbp_jax import ContinualBackpropState
from cbp_jax.unit_state import average_weight

LOG_FILE = "replacements.csv"
FIGURE_FILE = "survival.png"
_EVENT_FIELDS = ("step", "layer", "unit", "age", "utility")
_NO_LANES = ("task", "layer")
_NOT_LANE = ("case", "task", *_EVENT_FIELDS)


class ReplacementLog(NamedTuple):
    """Events of one lane in one task; those beyond C are only counted."""

    step: jax.Array  # int32 [C], updates since the start of the task.
    layer: jax.Array  # int32 [C], index of the hidden layer.
    unit: jax.Array  # int32 [C]
    age: jax.Array  # int32 [C], at the replacement.
    utility: jax.Array  # float32 [C], age-corrected, of the step before.
    count: jax.Array  # int32 scalar, events so far, also those beyond C.
    clock: jax.Array  # int32 scalar, updates since the start of the task.


def empty_log(capacity: int) -> ReplacementLog:
    """Returns a log of C = capacity events, at the start of a task."""
    integers = jnp.zeros(capacity, jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return ReplacementLog(
        *(integers, integers, integers, integers),
        utility=jnp.zeros(capacity, jnp.float32),
        count=zero,
        clock=zero,
    )


def record(
    log: ReplacementLog,
    layers: Sequence[str],
    decay_rate: float | jax.Array,
    before: ContinualBackpropState,
    after: ContinualBackpropState,
) -> ReplacementLog:
    """Adds the replacements of one update.

    Args:
      log: the log so far.
      layers: names of the hidden layers, which are those of the unit groups.
      decay_rate: of the utilities' running average.
      before: the optimizer's state before the update.
      after: the state after it, whose `replaced` is recorded.

    Returns:
      The log with the new events, and its clock one step on.
    """
    capacity = log.step.shape[0]
    for index, name in enumerate(layers):
        units = before.units[name]
        replaced = after.replaced[name]
        is_event = replaced < units.age.shape[0]
        place = log.count + jnp.cumsum(is_event) - 1
        place = jnp.where(is_event, place, capacity)
        unit = jnp.where(is_event, replaced, 0)
        age = jnp.maximum(units.age[unit], 1)
        weight = average_weight(age, decay_rate, units.utility.dtype)
        event = {
            "step": jnp.broadcast_to(log.clock, unit.shape),
            "layer": jnp.full_like(unit, index),
            "unit": unit,
            "age": age + 1,
            "utility": (units.utility[unit] / weight).astype(jnp.float32),
        }
        log = log._replace(
            count=log.count + jnp.sum(is_event, dtype=jnp.int32),
            **{
                field: getattr(log, field).at[place].set(value, mode="drop")
                for field, value in event.items()
            },
        )
    return log._replace(clock=log.clock + 1)


class LogFile:
    """The CSV file of a run, one line for each replacement.

    Columns: case, task, each swept hyper-parameter, seed, then `step` (updates since
    the start of the task), `layer`, `unit`, `age` (updates since its birth) and
    `utility` (age-corrected, of the step before).

    Args:
      folder: the run folder.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / LOG_FILE

    def append(
        self,
        case: str,
        task: int,
        coordinates: Mapping[str, np.ndarray],
        layers: Sequence[str],
        log: ReplacementLog,
    ) -> int:
        """Writes the events of a task.

        Args:
          case: name of the case.
          task: its number.
          coordinates: values of each swept hyper-parameter, then the seeds.
          layers: names of the hidden layers.
          log: arrays with a leading axis of L lanes.

        Returns:
          The number of events that did not fit into the log.
        """
        is_new = not self._path.exists()
        capacity = log.step.shape[1]
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("case", "task", *coordinates, *_EVENT_FIELDS))
            for lane, point in enumerate(itertools.product(*coordinates.values())):
                columns = [
                    getattr(log, field)[lane, : log.count[lane]].tolist()
                    for field in _EVENT_FIELDS
                ]
                for step, layer, *event in zip(*columns, strict=True):
                    writer.writerow((case, task, *point, step, layers[layer], *event))
        return int(np.maximum(log.count - capacity, 0).sum())

    def size(self) -> int:
        """Returns the length of the file, in bytes."""
        return self._path.stat().st_size if self._path.exists() else 0

    def truncate(self, size: int) -> None:
        """Takes back what was written after the file had this length."""
        if self.size() > size:
            with self._path.open("r+b") as file:
                file.truncate(size)
        if size == 0:
            self._path.unlink(missing_ok=True)


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
    deaths: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], dict[Any, int]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            group = row["case"], row["layer"]
            steps_per_task = float(dataset.steps.sel(case=row["case"], task=0))
            lane = (value for name, value in row.items() if name not in _NOT_LANE)
            time = int(row["task"]) * steps_per_task + int(row["step"]) + 1
            deaths.setdefault(group, []).append(int(row["age"]))
            last.setdefault(group, {})[*lane, row["unit"]] = int(time)
    lanes = math.prod(
        size for name, size in dataset.sizes.items() if name not in ("case", *_NO_LANES)
    )
    lives = {}
    for (case, layer), ages in deaths.items():
        end = int(dataset.steps.sel(case=case).max())
        num_units = int(dataset.num_units.sel(case=case, layer=layer)) * lanes
        births = np.zeros(num_units, int)
        births[: len(last[case, layer])] = list(last[case, layer].values())
        lives[case, layer] = np.array(ages), end - births
    return lives


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

"""The trials of a comparison: every method at every setting, read from runs.

A method is a case. Its settings are the points of its sweep; several runs may hold
seeds and settings of the same method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reporting import run_results, statistics

if TYPE_CHECKING:
    import xarray as xr

# Fields of a config that say what a run covers, measures or is called, and how it is
# carried out, but not what a learner of given hyperparameters and seed does.
_NOT_COMPARED = {
    *("cases", "sweep", "num_seeds", "first_seed", "num_tasks", "preset", "cbp_jax"),
    *("measured_examples", "rank_every", "rank_method", "replacement_log"),
    *("checkpoint_every", "checkpoint_seconds", "lanes_per_block", "probe"),
    "timed_task",
    *("tensorboard", "wandb", "data_dir"),
}


class Run(NamedTuple):
    """A run and what it is called in messages."""

    name: str
    dataset: xr.Dataset

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run."""
        return json.loads(self.dataset.attrs["config"])


class Trial(NamedTuple):
    """One method at one setting."""

    method: str
    setting: dict[str, float]  # The hyperparameters that trials of it differ in.
    results: xr.Dataset  # Measures with dimensions seed, task and layer.

    def __str__(self) -> str:
        """Writes the method and, in brackets, its setting."""
        text = ", ".join(f"{name} {value:g}" for name, value in self.setting.items())
        return f"{self.method} ({text})" if text else self.method

    @property
    def seeds(self) -> list[int]:
        """The seeds that were run, in ascending order."""
        return sorted(map(int, self.results.seed.values))

    @property
    def more_is_better(self) -> bool:
        """Whether the score is an accuracy; else it is an error."""
        return statistics.score_name(self.results) == "accuracy"

    def scores(self, seeds: Sequence[int]) -> np.ndarray:
        """Returns the score of seeds in all tasks, float64 [seeds, tasks].

        From the task in which a lane diverges it has the worst score that there is:
        accuracy 0, or an infinite error.
        """
        worst = 0.0 if self.more_is_better else np.inf
        curves = self._curves(seeds)
        diverged = np.logical_or.accumulate(np.isnan(curves), axis=1)
        return np.where(diverged, worst, curves)

    def is_lost(self, seeds: Sequence[int]) -> np.ndarray:
        """Returns which seeds diverged: bool [seeds]."""
        return np.isnan(self._curves(seeds)).any(axis=1)

    def _curves(self, seeds: Sequence[int]) -> np.ndarray:
        curves = self.results[statistics.score_name(self.results)]
        return curves.sel(seed=list(seeds)).transpose("seed", "task").values


def read_trials(runs: Sequence[Run], beside: Sequence[Run]) -> list[Trial]:
    """Reads all trials of some runs, which had the same tasks.

    Of a seed that several runs have, at the same setting, the first run's is taken.

    Args:
      runs: which to read.
      beside: all others of the comparison, in which settings may differ, too.

    Returns:
      The trials, those of a method one after the other, by their setting.

    Raises:
      ValueError: trials of different numbers or lengths of tasks, or a run that is not
        finished.
    """
    for run in (*runs, *beside):
        if how_far := run_results.unfinished(run.dataset):
            raise ValueError(
                f"{run.name} is unfinished ({how_far}), and methods are compared by "
                "whole runs: the command of the run, started again, goes on with it."
            )
    parameters = _parameters([*runs, *beside])
    names = _differing_parameters([*runs, *beside], parameters)
    found: dict[tuple[str, tuple[tuple[str, float], ...]], list[xr.Dataset]] = {}
    for run in runs:
        for case, values, results in _settings(run, parameters):
            setting = tuple(
                (name, values[name]) for name in names[case] if name in values
            )
            found.setdefault((case, setting), []).append(results)
    trials = [
        Trial(case, dict(setting), _join_seeds(parts))
        for (case, setting), parts in found.items()
    ]
    _check_tasks(trials)
    methods = list(names)
    return sorted(
        trials,
        key=lambda trial: (
            methods.index(trial.method),
            tuple(trial.setting.values()),
        ),
    )


def check_same_problem(runs: Sequence[Run]) -> None:
    """Raises ValueError if learners of some runs did not see the same streams.

    Fields of the configs must agree that no case sets for itself, as must those of a
    case that several runs hold.
    """
    first, *others = runs
    for other in others:
        scores = [statistics.score_name(run.dataset) for run in (first, other)]
        if len(set(scores)) > 1:
            raise ValueError(
                f"{first.name} measures {scores[0]}, {other.name} {scores[1]}: compare "
                "runs of the same problem."
            )
        one, two = first.config, other.config
        ignored = _NOT_COMPARED | set(_parameters([first, other]))
        cases = [*one["cases"].values(), *two["cases"].values()]
        own = {field for case in cases for field in case}
        differing = _differences("", one, two, ignored | own)
        for case in one["cases"].keys() & two["cases"].keys():
            fields = [config | config["cases"][case] for config in (one, two)]
            differing += _differences(f"cases.{case}.", *fields, ignored)
        if differing:
            raise ValueError(
                f"{first.name} and {other.name} cannot be compared, because their "
                f"configs differ in {'; '.join(sorted(set(differing)))}. Run both with "
                "the same values."
            )


def _differences(
    prefix: str, one: Mapping[str, Any], two: Mapping[str, Any], ignored: set[str]
) -> list[str]:
    return [
        f"{prefix}{field} ({one[field]} and {two[field]})"
        for field in (one.keys() & two.keys()) - ignored
        if one[field] != two[field]
    ]


def _parameters(runs: Sequence[Run]) -> list[str]:
    """Names the hyperparameters that some run or a case of it sweeps, or could."""
    names: list[str] = []
    for run in runs:
        names += run_results.swept_names(run.dataset)
        config = run.config
        for fields in (config, *config["cases"].values()):
            names += fields.get("sweep", {})
    return list(dict.fromkeys(names))


def _differing_parameters(
    runs: Sequence[Run], parameters: Sequence[str]
) -> dict[str, list[str]]:
    """Names for each case the hyperparameters in which its settings differ."""
    seen: dict[str, dict[str, set[float]]] = {}
    for run in runs:
        for case, values, _ in _settings(run, parameters):
            of_case = seen.setdefault(case, {})
            for name, value in values.items():
                of_case.setdefault(name, set()).add(value)
    return {
        case: [name for name, values in of_case.items() if len(values) > 1]
        for case, of_case in seen.items()
    }


def _settings(
    run: Run, parameters: Sequence[str]
) -> Iterator[tuple[str, dict[str, float], xr.Dataset]]:
    """Goes through what a run holds: case, all hyperparameters, and results."""
    config = run.config
    missing = dict.fromkeys(map(str, run.dataset.case.values))
    for labels, setting in run_results.settings_of(run.dataset):
        case = labels["case"]
        missing.pop(case, None)
        fields = config | config["cases"][case] | labels
        values = {
            name: float(fields[name])
            for name in parameters
            if name in fields and not math.isnan(fields[name])
        }
        yield case, values, _measured(setting)
    if missing:
        raise ValueError(
            f"{run.name} has no results of {', '.join(missing)} yet; the command of "
            "the run, started again, goes on with it."
        )


def _measured(setting: xr.Dataset) -> xr.Dataset:
    """Keeps the tasks that were run, and what was measured of each seed."""
    setting = setting.sel(task=setting.examples.notnull())
    sizes = ("examples", "num_units", "num_weights")
    kept = [
        name
        for name, values in setting.data_vars.items()
        if "seed" in values.dims or name in sizes
    ]
    return setting[kept]


def _join_seeds(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Joins the seeds of several runs; of one that comes twice, the first is taken."""
    import xarray as xr

    common = [name for name in parts[0] if all(name in part for part in parts)]
    joined, *others = [part[common] for part in parts]
    for part in others:
        part = part.drop_sel(seed=np.intersect1d(part.seed, joined.seed))
        joined = xr.concat(
            [joined, part],
            dim="seed",
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="outer",
        )
    return joined


def _check_tasks(trials: Sequence[Trial]) -> None:
    """Raises ValueError unless all trials had the same tasks, of the same length."""
    longest = max(trials, key=lambda trial: trial.results.sizes["task"])
    for trial in trials:
        if not np.array_equal(trial.results.examples, longest.results.examples):
            shown = [
                f"{one}: {one.results.sizes['task']} tasks, "
                f"{float(one.results.examples[-1]):,.0f} examples"
                for one in (trial, longest)
            ]
            raise ValueError(
                f"Trials of different lengths cannot be compared ({'; '.join(shown)}). "
                "Finish the shorter run, or, if it is there to choose settings, pass "
                "it as --tuning_run."
            )

"""The trials of a comparison: every method at every setting, read from runs.

A method is a case. Its settings are the points of its sweep or the trials of its
search; seeds and settings of a method may be from several runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reporting import run_results, scales, statistics

if TYPE_CHECKING:
    import xarray as xr

# Config fields that do not change the results of a learner with given hyperparameters
# and seed: the extent, measures and name of a run, and how it is carried out.
_NOT_COMPARED = {
    *("cases", "sweep", "num_seeds", "first_seed", "num_tasks", "preset", "cbp_jax"),
    *("search", "num_trials"),
    *("measured_examples", "rank_every", "rank_method", "replacement_log"),
    *("probe_every", "probe_measures", "probe_examples", "probe_updates"),
    *("checkpoint_every", "checkpoint_seconds", "lanes_per_block", "probe"),
    "timed_task",
    *("tensorboard", "wandb", "data_dir"),
}


class Run(NamedTuple):
    """A run, and its name in messages."""

    name: str
    dataset: xr.Dataset

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run."""
        return json.loads(self.dataset.attrs["config"])


class Trial(NamedTuple):
    """One method at one setting."""

    method: str
    setting: dict[str, float]  # The hyperparameters that differ between its trials.
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
    def score_name(self) -> str:
        """The variable that measures performance: "accuracy" or "error"."""
        return statistics.score_name(self.results)

    @property
    def more_is_better(self) -> bool:
        """Whether the score is an accuracy rather than an error."""
        return self.score_name == "accuracy"

    def scores(self, seeds: Sequence[int]) -> np.ndarray:
        """Returns the score of seeds in all tasks, float64 [seeds, tasks].

        From the task in which a lane diverges, it has the worst possible score:
        accuracy 0, or an infinite error.
        """
        worst = 0.0 if self.more_is_better else np.inf
        curves = self._curves(seeds)
        diverged = np.logical_or.accumulate(np.isnan(curves), axis=1)
        return np.where(diverged, worst, curves)

    def rank(self, seeds: Sequence[int]) -> tuple[int, float]:
        """Returns what sorts trials by their scores on some seeds, the best first.

        Accuracies are sorted by their mean. Of errors, the fewest diverged seeds are
        best, whatever the mean over the other seeds.
        """
        means = self.scores(seeds).mean(axis=1)
        if self.more_is_better:
            return 0, -float(means.mean())
        finite = means[np.isfinite(means)]
        num_lost = int(self.is_lost(seeds).sum())
        return num_lost, float(finite.mean()) if finite.size else np.inf

    def is_lost(self, seeds: Sequence[int]) -> np.ndarray:
        """Returns which seeds diverged, bool [seeds]."""
        return np.isnan(self._curves(seeds)).any(axis=1)

    def _curves(self, seeds: Sequence[int]) -> np.ndarray:
        curves = self.results[self.score_name]
        return curves.sel(seed=list(seeds)).transpose("seed", "task").values


Ranges = Mapping[str, tuple[str, tuple[float, ...]]]
"""The scale and the range of each hyperparameter that a method searches."""


def search_ranges(runs: Sequence[Run]) -> dict[str, Ranges]:
    """Returns in which ranges the methods of some runs were searched.

    Returns:
      The ranges by method, from the lowest to the highest value in any run. A method
      that was not searched has none.
    """
    found: dict[str, dict[str, tuple[str, tuple[float, ...]]]] = {}
    for run in runs:
        for case, ranges in run_results.ranges_of(run.dataset).items():
            own = found.setdefault(case, {})
            for name, (scale, ends) in ranges.items():
                _, before = own.get(name, (scale, ()))
                values = sorted({*before, *ends})
                if scale != scales.CHOICE:
                    values = [values[0], values[-1]]
                own[name] = scale, tuple(values)
    return dict(found)


def read_trials(runs: Sequence[Run], beside: Sequence[Run]) -> list[Trial]:
    """Reads all trials of some runs, which must have the same tasks.

    If several runs have the same seed at the same setting, the first run is used.

    Args:
      runs: the runs to read.
      beside: all other runs of the comparison, whose settings may also differ.

    Returns:
      The trials, ordered by method and setting.

    Raises:
      ValueError: trials differ in the number or length of tasks, or a run is
        unfinished.
    """
    for run in (*runs, *beside):
        if how_far := run_results.unfinished(run.dataset):
            raise ValueError(
                f"{run.name} is unfinished ({how_far}), but only finished runs can be "
                "compared: run its command again to continue it."
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
    """Raises ValueError if the learners of some runs did not see the same streams.

    The configs must agree in all fields that no case overrides, and in all fields of
    cases that several runs have.
    """
    first, *others = runs
    for other in others:
        scores = [statistics.score_name(run.dataset) for run in (first, other)]
        if len(set(scores)) > 1:
            raise ValueError(
                f"{first.name} measures {scores[0]}, but {other.name} measures "
                f"{scores[1]}: compare runs of the same problem."
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
                f"configs differ in {'; '.join(sorted(set(differing)))}: run both with "
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
    """Returns the hyperparameters that any run or case sweeps or has in its sweep."""
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
    """Returns the hyperparameters in which the settings of each case differ."""
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
    """Yields the settings of a run: case, all hyperparameters, and results."""
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
            f"{run.name} has no results of {', '.join(missing)} yet: run its command "
            "again to continue it."
        )


def _measured(setting: xr.Dataset) -> xr.Dataset:
    """Keeps the tasks that were run, and the variables measured for each seed."""
    setting = setting.sel(task=setting.examples.notnull())
    sizes = ("examples", "num_units", "num_weights")
    kept = [
        name
        for name, values in setting.data_vars.items()
        if "seed" in values.dims or name in sizes
    ]
    return setting[kept]


def _join_seeds(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Joins the seeds of several runs, and keeps the first of duplicates."""
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
    """Raises ValueError unless all trials have the same number and length of tasks."""
    longest = max(trials, key=lambda trial: trial.results.sizes["task"])
    for trial in trials:
        if not np.array_equal(trial.results.examples, longest.results.examples):
            shown = [
                f"{one}: {one.results.sizes['task']} tasks, "
                f"{float(one.results.examples[-1]):,.0f} examples"
                for one in (trial, longest)
            ]
            raise ValueError(
                f"Trials of different lengths cannot be compared ({'; '.join(shown)}): "
                "finish the shorter run or, if it is only for choosing settings, pass "
                "it as --tuning_run."
            )

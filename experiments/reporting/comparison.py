"""Methods against each other: strengths are chosen on some seeds, judged on others.

One seed is one stream of tasks for all methods, so methods are compared by the
differences on the same seeds. A lane that diverged is never left out: from that task on
it has the worst score there is, accuracy 0 or an infinite error.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reporting import choosing, paired
from experiments.reporting.choosing import Choice
from experiments.reporting.trials import Run, Trial, check_same_problem, read_trials

FOLDER = "comparison"
TABLE_FILES = ("comparison.md", "comparison.csv", "trials.csv")
FIGURE_FILES = ("differences.png", "curves.png")
"""What is written of a comparison, and where in a run folder."""

LOST = (
    "A seed that diverged has the worst score there is from that task on: accuracy 0, "
    "or an infinite error. What it lost from its best task is 100 %, or infinite."
)
"""The rule for lanes that diverged."""

_FEW_SEEDS = 5


class Score(NamedTuple):
    """One number for each seed of a trial, in the unit of accuracy or error."""

    name: str
    title: str
    is_loss: bool  # Whether less is better even for an accuracy.
    of: Callable[[Trial, Sequence[int]], np.ndarray]  # [seeds]

    def more_is_better(self, trial: Trial) -> bool:
        """Whether a higher number is the better one."""
        return trial.more_is_better and not self.is_loss


def _over_all_tasks(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    return trial.scores(seeds).mean(axis=1)


def _over_last_tenth(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    scores = trial.scores(seeds)
    tenth = -(-scores.shape[1] // 10)
    return scores[:, -tenth:].mean(axis=1)


def _lost_from_best(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    """Takes the last tenth from the best task: that of the best mean over the seeds.

    A seed that diverged has the largest loss there is, 1 or infinite.
    """
    scores = trial.scores(seeds)
    last = _over_last_tenth(trial, seeds)
    means = scores.mean(axis=0)
    best = scores[:, means.argmax() if trial.more_is_better else means.argmin()]
    is_lost = trial.is_lost(seeds)
    if trial.more_is_better:
        return np.where(is_lost, 1.0, best - last)
    return np.subtract(last, best, where=~is_lost, out=np.full(last.shape, np.inf))


SCORES = (
    Score("all_tasks", "mean over all tasks", False, _over_all_tasks),
    Score("last_tenth", "last tenth of the tasks", False, _over_last_tenth),
    Score("lost", "lost from the best task to the last tenth", True, _lost_from_best),
)
"""What methods are judged by. The first orders them, and chooses their strengths."""


class Verdict(NamedTuple):
    """What the judging seeds say of a method, by one score."""

    method: str
    num_seeds: int
    num_lost: int  # Seeds of these that diverged.
    mean: float
    interquartile_mean: float
    paired: paired.Paired  # To the reference.


class Comparison(NamedTuple):
    """The outcome of a comparison."""

    reference: str
    tuning_seeds: list[int]
    choices: list[Choice]
    judged: dict[str, Trial]  # At the chosen strengths, with judging seeds only.
    verdicts: dict[str, list[Verdict]]  # By the name of the score, best first.
    warnings: list[str]


def choose_strengths(
    runs: Sequence[Run], num_tuning_seeds: int | None
) -> tuple[list[Choice], list[str]]:
    """Chooses the strengths of all methods of some runs, to judge them later.

    Args:
      runs: at least one.
      num_tuning_seeds: how many of the first seeds choose; None for all.

    Returns:
      The choices, and what is doubtful about them.

    Raises:
      ValueError: runs that cannot be compared, or too few seeds.
    """
    check_same_problem(runs)
    trials = read_trials(runs, ())
    seeds = choosing.tuning_seeds(trials, num_tuning_seeds)
    choices = choosing.choose(trials, seeds)
    return choices, choosing.warnings_of(choices, len(seeds))


def compare(
    runs: Sequence[Run],
    tuning_runs: Sequence[Run],
    num_tuning_seeds: int | None,
    reference: str,
    rng_seed: int,
) -> Comparison:
    """Chooses the strengths of all methods and judges them on other seeds.

    Args:
      runs: the runs that are judged, at least one.
      tuning_runs: the runs that strengths are chosen on; those judged, if none.
      num_tuning_seeds: how many of the first seeds choose; None for all seeds of the
        tuning runs, or for none if there are no tuning runs.
      reference: the method that others are compared with.
      rng_seed: of the bootstrap.

    Returns:
      The comparison.

    Raises:
      ValueError: runs that cannot be compared; a reference or a chosen strength that
        was not run; no seeds to choose by; less than two seeds to judge by.
    """
    check_same_problem([*runs, *tuning_runs])
    candidates = read_trials(runs, tuning_runs)
    methods = list(dict.fromkeys(trial.method for trial in candidates))
    if reference not in methods:
        raise ValueError(
            f"--reference={reference} was not run; choose from {', '.join(methods)}."
        )
    if len(methods) == 1:
        raise ValueError(f"Only {reference} was run; there is nothing to compare.")
    if tuning_runs:
        tried = read_trials(tuning_runs, runs)
        seeds = choosing.tuning_seeds(tried, num_tuning_seeds)
    else:
        tried = candidates
        seeds = choosing.tuning_seeds(tried, num_tuning_seeds or 0)
    # A method with a single strength needs no tuning run.
    tried = [
        trial
        for method in methods
        for trial in _of_method(method, tried) or _of_method(method, candidates)
    ]
    choices = choosing.choose(tried, seeds)
    chosen = {one.method: _find(one.trial, candidates) for one in choices}
    judged = _with_judging_seeds(chosen, reference, seeds)
    return Comparison(
        reference,
        seeds,
        choices,
        judged,
        {score.name: _judge(score, judged, reference, rng_seed) for score in SCORES},
        choosing.warnings_of(choices, len(seeds)) + _warnings(judged, reference),
    )


def _of_method(method: str, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.method == method]


def _find(chosen: Trial, candidates: Sequence[Trial]) -> Trial:
    """Returns the trial of this method and strength; ValueError if there is none."""
    own = _of_method(chosen.method, candidates)
    for trial in own:
        if trial.strength == chosen.strength:
            return trial
    raise ValueError(
        f"{chosen} was chosen but not run to be judged; there are only "
        f"{', '.join(map(str, own))}."
    )


def _with_judging_seeds(
    chosen: dict[str, Trial], reference: str, tuning_seeds: Sequence[int]
) -> dict[str, Trial]:
    """Leaves each trial the seeds that it has in common with the reference.

    Raises:
      ValueError: less than two.
    """
    judging = set(chosen[reference].seeds) - set(tuning_seeds)
    judged = {}
    for method, trial in chosen.items():
        seeds = sorted(judging & set(trial.seeds))
        if len(seeds) < 2:
            left = "1 seed is" if seeds else "No seed is"
            raise ValueError(
                f"{left} left to judge {trial}, and how sure a difference is can only "
                f"be told from several: beside those that chose ({len(tuning_seeds)}), "
                f"run at least 5 that {reference} is run with, better 10 or more."
            )
        judged[method] = trial._replace(results=trial.results.sel(seed=seeds))
    return judged


def _judge(
    score: Score, judged: dict[str, Trial], reference: str, rng_seed: int
) -> list[Verdict]:
    """Compares all methods with the reference: the best difference comes first."""
    more_is_better = score.more_is_better(judged[reference])
    verdicts = []
    for method, trial in judged.items():
        values = score.of(trial, trial.seeds)
        pair = paired.compare(
            values, score.of(judged[reference], trial.seeds), more_is_better, rng_seed
        )
        verdicts.append(
            Verdict(
                method,
                len(trial.seeds),
                int(trial.is_lost(trial.seeds).sum()),
                float(values.mean()),
                paired.interquartile_mean(values),
                pair,
            )
        )
    sign = -1 if more_is_better else 1

    def rank(verdict: Verdict) -> tuple[float, float, str]:
        difference = verdict.paired.difference
        if np.isnan(difference):
            difference = sign * np.inf
        return sign * difference, sign * verdict.interquartile_mean, verdict.method

    return sorted(verdicts, key=rank)


def _warnings(judged: dict[str, Trial], reference: str) -> list[str]:
    """Says what is doubtful about the judging seeds."""
    found = []
    num_seeds = {method: len(trial.seeds) for method, trial in judged.items()}
    fewest = min(num_seeds.values())
    if fewest < _FEW_SEEDS:
        found.append(
            f"Only {fewest} seeds judge. With less than {_FEW_SEEDS}, an interval that "
            "holds 0 does not say that methods are alike."
        )
    fewer = [
        f"{method} {number}"
        for method, number in num_seeds.items()
        if number < num_seeds[reference]
    ]
    if fewer:
        found.append(
            f"Judged on fewer seeds than {reference} ({num_seeds[reference]}): "
            f"{', '.join(fewer)}."
        )
    lost = {
        method: int(trial.is_lost(trial.seeds).sum())
        for method, trial in judged.items()
    }
    if any(lost.values()):
        shown = [
            f"{method} {number} of {num_seeds[method]}"
            for method, number in lost.items()
            if number
        ]
        found.append(f"Seeds that diverged: {', '.join(shown)}. {LOST}")
    return found

"""The strength of each method, chosen on seeds that will not judge it."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.reporting.trials import Trial


class Choice(NamedTuple):
    """The strengths that a method has tried, and the one that was best."""

    method: str
    trials: list[Trial]
    scores: list[float]  # Of each trial, mean over tasks and tuning seeds.
    num_lost: list[int]  # Tuning seeds of each trial that diverged.
    best: int  # Index of the trial with the best score.

    @property
    def trial(self) -> Trial:
        """The trial that was chosen."""
        return self.trials[self.best]

    @property
    def at_edge(self) -> list[str]:
        """Names the hyper-parameters of which the lowest or highest value was best."""
        edges = []
        for name, value in self.trial.strength.items():
            tried = {trial.strength.get(name, value) for trial in self.trials}
            if len(tried) > 1 and value in (min(tried), max(tried)):
                edges.append(name)
        return edges


def tuning_seeds(trials: Sequence[Trial], number: int | None) -> list[int]:
    """Returns the first seeds of some trials, all of them if no number is given.

    Raises:
      ValueError: there are not so many.
    """
    seeds = sorted({seed for trial in trials for seed in trial.seeds})
    if number is not None and number > len(seeds):
        raise ValueError(
            f"--tuning_seeds={number} of {len(seeds)} seeds that were run: choose a "
            "smaller number, or run more seeds."
        )
    return seeds[:number]


def choose(trials: Sequence[Trial], seeds: Sequence[int]) -> list[Choice]:
    """Chooses the best strength of each method: the best mean over tasks and seeds.

    Of errors a strength with fewer lost seeds is better, whatever the others; the same
    holds of infinite means. Of equal strengths the first is taken. A method with one
    strength needs no seeds.

    Args:
      trials: of all methods.
      seeds: to choose by.

    Returns:
      One choice for each method.

    Raises:
      ValueError: no seeds to choose by, or a trial that lacks one.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    return [_choose_one(method, tried, seeds) for method, tried in by_method.items()]


def usual_trials(choices: Sequence[Choice]) -> int:
    """Returns how many strengths most methods have tried; if undecided, the most."""
    counts = Counter(len(choice.trials) for choice in choices)
    return max(counts, key=lambda number: (counts[number], number))


def warnings_of(choices: Sequence[Choice], num_seeds: int) -> list[str]:
    """Says what is doubtful about choices made on so many seeds."""
    found = []
    if num_seeds == 1 and any(len(choice.trials) > 1 for choice in choices):
        found.append("Strengths were chosen on a single seed, so partly by chance.")
    usual = usual_trials(choices)
    unequal = [
        f"{choice.method} {len(choice.trials)}"
        for choice in choices
        if len(choice.trials) != usual
    ]
    if unequal:
        found.append(
            f"Unequal tuning: most methods tried {usual} strengths, but "
            f"{', '.join(unequal)}. Who tries more has more to choose from."
        )
    edges = [
        f"{choice.method} ({', '.join(choice.at_edge)})"
        for choice in choices
        if choice.at_edge
    ]
    if edges:
        found.append(
            f"Best at the edge of the grid: {', '.join(edges)}. A better strength may "
            "lie outside."
        )
    return found


def _choose_one(method: str, tried: list[Trial], seeds: Sequence[int]) -> Choice:
    if len(tried) == 1:
        known = [seed for seed in seeds if seed in tried[0].seeds]
        score, num_lost = _tuning_score(tried[0], known)
        return Choice(method, tried, [score], [num_lost], 0)
    if not seeds:
        raise ValueError(
            f"{method} has {len(tried)} strengths and no seeds to choose one by: give "
            "--tuning_seeds=N for the first N seeds to choose, or --tuning_run=RUN."
        )
    for trial in tried:
        missing = sorted(set(seeds) - set(trial.seeds))
        if missing:
            raise ValueError(
                f"{trial} was not run with the seeds {_shown(missing)}, by which "
                f"strengths are chosen ({_shown(seeds)}): give a smaller "
                "--tuning_seeds, or run it with them."
            )
    scored = [_tuning_score(trial, seeds) for trial in tried]
    ranks = []
    for trial, (score, num_lost) in zip(tried, scored, strict=True):
        if trial.more_is_better:
            ranks.append((0, -score))
        else:
            means = trial.scores(seeds).mean(axis=1)
            finite = means[np.isfinite(means)]
            ranks.append((num_lost, finite.mean() if finite.size else np.inf))
    scores, losses = map(list, zip(*scored, strict=True))
    return Choice(method, tried, scores, losses, ranks.index(min(ranks)))


def _tuning_score(trial: Trial, seeds: Sequence[int]) -> tuple[float, int]:
    if not seeds:
        return np.nan, 0
    return float(trial.scores(seeds).mean()), int(trial.is_lost(seeds).sum())


def _shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))

"""Compares methods: settings are chosen on some seeds and evaluated on others.

A seed is the same stream of tasks for all methods, so methods are compared by their
differences on the same seeds. A lane that diverged is never ignored: from that task on
it has the worst possible score, accuracy 0 or an infinite error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.reporting import ranking, scales
from experiments.reporting.trials import (
    Ranges,
    Run,
    Trial,
    check_same_problem,
    read_trials,
    search_ranges,
)

LOST = (
    "From the task in which it diverged, a seed has the worst possible score: accuracy "
    "0, or an infinite error. Its loss from the best task is 100 %, or infinite."
)
"""The rule for lanes that diverged."""

_FEW_SEEDS = 5

FEWEST_TO_RESAMPLE = 8
"""Smallest number of seeds for a bootstrap interval; below, it is Student's t."""

_LEVEL = 0.95
_OUTER = 0.1  # Fraction of a range, at each end.
_NUM_RESAMPLES = 9999


class Score(NamedTuple):
    """One number for each seed of a trial, in the unit of accuracy or error."""

    name: str
    title: str
    is_loss: bool  # Whether lower is better even for an accuracy.
    of: Callable[[Trial, Sequence[int]], np.ndarray]  # [seeds]

    def more_is_better(self, trial: Trial) -> bool:
        """Whether a higher number is better."""
        return trial.more_is_better and not self.is_loss


def _over_all_tasks(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    return trial.scores(seeds).mean(axis=1)


def _over_last_tenth(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    scores = trial.scores(seeds)
    tenth = -(-scores.shape[1] // 10)
    return scores[:, -tenth:].mean(axis=1)


def _lost_from_best(trial: Trial, seeds: Sequence[int]) -> np.ndarray:
    """Returns the loss from the best task, by mean over seeds, to the last tenth.

    A seed that diverged has the largest possible loss, 1 or infinite.
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
"""The scores. The first ranks the methods and chooses their settings."""


class Choice(NamedTuple):
    """The settings tried for a method, and the best one."""

    method: str
    trials: list[Trial]
    scores: list[float]  # Mean of each trial over tasks and tuning seeds.
    num_lost: list[int]  # Tuning seeds of each trial that diverged.
    best: int  # Index of the trial with the best score.
    ranges: Ranges = MappingProxyType({})  # Of the search, if there was one.

    @property
    def trial(self) -> Trial:
        """The trial that was chosen."""
        return self.trials[self.best]

    @property
    def at_edge(self) -> list[str]:
        """The hyperparameters whose best value is at the edge of what was tried.

        That is the lowest or the highest value or, in the range of a search, its outer
        tenth at either end.
        """
        return [
            name
            for name, value in self.trial.setting.items()
            if self._is_at_edge(name, value)
        ]

    def _is_at_edge(self, name: str, value: float) -> bool:
        scale, ends = self.ranges.get(name, (scales.CHOICE, ()))
        if scale != scales.CHOICE:
            place = scales.place_in(scale, ends, value)
            return not _OUTER <= place <= 1 - _OUTER
        tried = {trial.setting.get(name, value) for trial in self.trials} | {*ends}
        return len(tried) > 1 and value in (min(tried), max(tried))


class Paired(NamedTuple):
    """A method compared with a reference on the same seeds."""

    difference: float  # Mean over seeds of the method's score minus the reference's.
    low: float  # Of its 95 % confidence interval; NaN if a difference is infinite.
    high: float
    won: float  # Fraction of seeds on which the method is better; a tie counts half.
    verdict: str  # "better", "worse", "undecided", or "diverged" without an interval.


class Verdict(NamedTuple):
    """Results of a method on the evaluation seeds, by one score."""

    method: str
    num_seeds: int
    num_lost: int  # Number of these seeds that diverged.
    mean: float
    interquartile_mean: float
    paired: Paired  # Comparison with the reference.
    # Of a search, whose verdicts are corrected for the number of methods: the corrected
    # p-value, and the probability that a run is better than one of the reference.
    p_value: float | None = None
    improvement: float | None = None


class Comparison(NamedTuple):
    """The outcome of a comparison."""

    reference: str
    tuning_seeds: list[int]
    choices: list[Choice]
    evaluated: dict[str, Trial]  # With the chosen settings, on evaluation seeds only.
    verdicts: dict[str, list[Verdict]]  # By the name of the score, best first.
    warnings: list[str]
    # Of a search: methods that cannot be told apart by the first score, best first.
    groups: list[list[str]] | None = None


def choose_settings(
    runs: Sequence[Run], num_tuning_seeds: int | None
) -> tuple[list[Choice], list[str]]:
    """Chooses the settings of all methods of some runs, to evaluate them later.

    Args:
      runs: at least one run.
      num_tuning_seeds: number of seeds, from the first, that choose; None for all.

    Returns:
      The choices, and warnings about them.

    Raises:
      ValueError: the runs cannot be compared, or there are too few seeds.
    """
    check_same_problem(runs)
    trials = read_trials(runs, ())
    seeds = _first_seeds(trials, num_tuning_seeds)
    choices = _choose(trials, seeds, search_ranges(runs))
    return choices, _doubts_of_choices(choices, len(seeds))


def compare(
    runs: Sequence[Run],
    tuning_runs: Sequence[Run],
    num_tuning_seeds: int | None,
    reference: str,
    rng_seed: int,
) -> Comparison:
    """Chooses the settings of all methods and evaluates them on other seeds.

    Args:
      runs: the runs to evaluate, at least one.
      tuning_runs: the runs to choose settings on; if empty, `runs`.
      num_tuning_seeds: number of seeds, from the first, that choose; None for all seeds
        of the tuning runs, or for 0 if there are no tuning runs.
      reference: the method that others are compared with.
      rng_seed: seed of the bootstrap.

    Returns:
      The comparison.

    Raises:
      ValueError: the runs cannot be compared; the reference or a chosen setting was not
        run; there are no tuning seeds, or fewer than two evaluation seeds.
    """
    check_same_problem([*runs, *tuning_runs])
    candidates = read_trials(runs, tuning_runs)
    methods = list(dict.fromkeys(trial.method for trial in candidates))
    check_reference(reference, methods)
    if tuning_runs:
        tried = read_trials(tuning_runs, runs)
        seeds = _first_seeds(tried, num_tuning_seeds)
    else:
        tried = candidates
        seeds = _first_seeds(tried, num_tuning_seeds or 0)
    # A method with a single setting needs no tuning run.
    tried = [
        trial
        for method in methods
        for trial in _of_method(method, tried) or _of_method(method, candidates)
    ]
    choices = _choose(tried, seeds, search_ranges(tuning_runs or runs))
    is_search = any(choice.ranges for choice in choices)
    chosen = {one.method: _find(one.trial, candidates) for one in choices}
    evaluated = _with_evaluation_seeds(chosen, reference, seeds)
    verdicts = {
        score.name: _evaluate(score, evaluated, reference, rng_seed, is_search)
        for score in SCORES
    }
    return Comparison(
        reference,
        seeds,
        choices,
        evaluated,
        verdicts,
        _doubts_of_choices(choices, len(seeds)) + _warnings(evaluated, reference),
        _groups(evaluated, verdicts[SCORES[0].name]) if is_search else None,
    )


def check_reference(reference: str, methods: Sequence[str]) -> None:
    """Raises ValueError unless a reference and another method were run."""
    if reference not in methods:
        raise ValueError(
            f"--reference={reference} was not run; choose from {', '.join(methods)}."
        )
    if len(methods) == 1:
        raise ValueError(f"Only {reference} was run; there is nothing to compare.")


def _first_seeds(trials: Sequence[Trial], number: int | None) -> list[int]:
    """Returns the first seeds of some trials; all if no number is given.

    Raises:
      ValueError: there are too few.
    """
    seeds = sorted({seed for trial in trials for seed in trial.seeds})
    if number is not None and number > len(seeds):
        raise ValueError(
            f"--tuning_seeds={number}, but only {len(seeds)} seeds were run: choose a "
            "smaller number, or run more seeds."
        )
    return seeds[:number]


def _choose(
    trials: Sequence[Trial], seeds: Sequence[int], ranges: Mapping[str, Ranges]
) -> list[Choice]:
    """Chooses the best setting of each method: the best mean over tasks and seeds.

    If the score is an error, a setting with fewer diverged seeds is better, whatever
    the means of the other seeds. If settings are equal, the first is chosen. A method
    with one setting needs no seeds.

    Args:
      trials: trials of all methods.
      seeds: the tuning seeds.
      ranges: see `search_ranges`.

    Returns:
      One choice for each method.

    Raises:
      ValueError: there are no tuning seeds, or a trial lacks one.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    return [
        _choose_one(method, tried, seeds)._replace(ranges=ranges.get(method, {}))
        for method, tried in by_method.items()
    ]


def usual_trials(choices: Sequence[Choice]) -> int:
    """Returns the most common number of settings tried; the largest if tied."""
    counts = Counter(len(choice.trials) for choice in choices)
    return max(counts, key=lambda number: (counts[number], number))


def _doubts_of_choices(choices: Sequence[Choice], num_seeds: int) -> list[str]:
    """Returns warnings about the choices."""
    found = []
    if num_seeds == 1 and any(len(choice.trials) > 1 for choice in choices):
        found.append(
            "Hyperparameters were chosen on a single seed, so partly by chance."
        )
    usual = usual_trials(choices)
    unequal = [
        f"{choice.method} {len(choice.trials)}"
        for choice in choices
        if len(choice.trials) != usual
    ]
    if unequal:
        found.append(
            f"Unequal tuning: most methods tried {usual} settings, but "
            f"{', '.join(unequal)}. More trials give a method an advantage."
        )
    for where, is_search in (
        ("at the edge of the grid", False),
        ("in the outer tenth of its range", True),
    ):
        edges = [
            f"{choice.method} ({', '.join(choice.at_edge)})"
            for choice in choices
            if choice.at_edge and bool(choice.ranges) == is_search
        ]
        if edges:
            found.append(
                f"Best value {where}: {', '.join(edges)}. A better value may be "
                "outside."
            )
    return found


def _choose_one(method: str, tried: list[Trial], seeds: Sequence[int]) -> Choice:
    if len(tried) == 1:
        known = [seed for seed in seeds if seed in tried[0].seeds]
        score, num_lost = _tuning_score(tried[0], known)
        return Choice(method, tried, [score], [num_lost], 0)
    if not seeds:
        raise ValueError(
            f"{method} has {len(tried)} settings but no seeds to choose one: pass "
            "--tuning_seeds=N to choose on the first N seeds, --tuning_run=RUN to "
            "choose on those of another run, or --evaluate --num_seeds=N to train the "
            "best setting on N further seeds."
        )
    for trial in tried:
        missing = sorted(set(seeds) - set(trial.seeds))
        if missing:
            raise ValueError(
                f"{trial} was not run with seeds {_shown(missing)}, but these are "
                f"tuning seeds ({_shown(seeds)}): pass a smaller --tuning_seeds, or "
                "run it with them."
            )
    scored = [_tuning_score(trial, seeds) for trial in tried]
    ranks = [trial.rank(seeds) for trial in tried]
    scores, losses = map(list, zip(*scored, strict=True))
    return Choice(method, tried, scores, losses, ranks.index(min(ranks)))


def _tuning_score(trial: Trial, seeds: Sequence[int]) -> tuple[float, int]:
    if not seeds:
        return np.nan, 0
    return float(trial.scores(seeds).mean()), int(trial.is_lost(seeds).sum())


def _shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _of_method(method: str, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.method == method]


def _find(chosen: Trial, candidates: Sequence[Trial]) -> Trial:
    """Returns the trial of this method and setting; ValueError if there is none."""
    own = _of_method(chosen.method, candidates)
    for trial in own:
        if trial.setting == chosen.setting:
            return trial
    raise ValueError(
        f"{chosen} was chosen on the tuning run but is not in the runs to evaluate: "
        f"they have only {', '.join(map(str, own))}."
    )


def _with_evaluation_seeds(
    chosen: dict[str, Trial], reference: str, tuning_seeds: Sequence[int]
) -> dict[str, Trial]:
    """Restricts each trial to the evaluation seeds that it shares with the reference.

    Raises:
      ValueError: there are fewer than two.
    """
    evaluation_seeds = set(chosen[reference].seeds) - set(tuning_seeds)
    evaluated = {}
    for method, trial in chosen.items():
        seeds = sorted(evaluation_seeds & set(trial.seeds))
        if len(seeds) < 2:
            left = "1 seed is" if seeds else "No seed is"
            raise ValueError(
                f"{left} left to evaluate {trial}, but an interval needs several: in "
                f"addition to the tuning seeds ({len(tuning_seeds)}), run at least 5 "
                f"seeds that {reference} was run with, preferably 10 or more."
            )
        evaluated[method] = trial._replace(results=trial.results.sel(seed=seeds))
    return evaluated


def _evaluate(
    score: Score,
    evaluated: dict[str, Trial],
    reference: str,
    rng_seed: int,
    is_search: bool,
) -> list[Verdict]:
    """Compares all methods with the reference; the best difference is first.

    The verdicts of a search are corrected for the number of methods.
    """
    more_is_better = score.more_is_better(evaluated[reference])
    verdicts = []
    for method, trial in evaluated.items():
        values = score.of(trial, trial.seeds)
        paired = pair(
            values,
            score.of(evaluated[reference], trial.seeds),
            more_is_better,
            rng_seed,
        )
        verdicts.append(
            Verdict(
                method,
                len(trial.seeds),
                int(trial.is_lost(trial.seeds).sum()),
                float(values.mean()),
                interquartile_mean(values),
                paired,
            )
        )
    if is_search:
        verdicts = _corrected(verdicts, score, evaluated, reference)
    sign = -1 if more_is_better else 1

    def rank(verdict: Verdict) -> tuple[float, float, str]:
        difference = verdict.paired.difference
        if np.isnan(difference):
            difference = sign * np.inf
        return sign * difference, sign * verdict.interquartile_mean, verdict.method

    return sorted(verdicts, key=rank)


def _corrected(
    verdicts: Sequence[Verdict],
    score: Score,
    evaluated: dict[str, Trial],
    reference: str,
) -> list[Verdict]:
    """Replaces verdicts by those of paired tests, corrected by Holm's method."""
    more_is_better = score.more_is_better(evaluated[reference])
    others = [verdict for verdict in verdicts if verdict.method != reference]
    pairs = []
    for verdict in others:
        trial = evaluated[verdict.method]
        pairs.append(
            (
                score.of(trial, trial.seeds),
                score.of(evaluated[reference], trial.seeds),
            )
        )
    adjusted = ranking.holm([ranking.p_value(*pair) for pair in pairs])
    found = [verdict for verdict in verdicts if verdict.method == reference]
    for verdict, pair, p_value in zip(others, pairs, adjusted, strict=True):
        improvement = ranking.probability_of_improvement(*pair)
        if not more_is_better:
            improvement = 1 - improvement
        paired = verdict.paired
        if p_value < 1 - _LEVEL:
            is_better = (
                (paired.won > 0.5)
                if np.isnan(paired.difference)
                else ((paired.difference > 0) == more_is_better)
            )
            paired = paired._replace(verdict="better" if is_better else "worse")
        elif paired.verdict != "diverged":
            paired = paired._replace(verdict="undecided")
        found.append(
            verdict._replace(
                paired=paired, p_value=float(p_value), improvement=improvement
            )
        )
    return found


def _groups(
    evaluated: Mapping[str, Trial], verdicts: Sequence[Verdict]
) -> list[list[str]]:
    """Returns the groups of methods that the first score cannot tell apart."""
    scores = {}
    for verdict in verdicts:
        trial = evaluated[verdict.method]
        values = SCORES[0].of(trial, trial.seeds)
        scores[verdict.method] = dict(zip(trial.seeds, values, strict=True))
    return ranking.groups(scores, 1 - _LEVEL)


def _warnings(evaluated: dict[str, Trial], reference: str) -> list[str]:
    """Returns warnings about the evaluation seeds."""
    found = []
    num_seeds = {method: len(trial.seeds) for method, trial in evaluated.items()}
    fewest = min(num_seeds.values())
    if fewest < _FEW_SEEDS:
        found.append(
            f"Only {fewest} evaluation seeds. With fewer than {_FEW_SEEDS}, an "
            "interval that contains 0 does not show that methods are equally good."
        )
    fewer = [
        f"{method} {number}"
        for method, number in num_seeds.items()
        if number < num_seeds[reference]
    ]
    if fewer:
        found.append(
            f"Evaluated on fewer seeds than {reference} ({num_seeds[reference]}): "
            f"{', '.join(fewer)}."
        )
    lost = {
        method: int(trial.is_lost(trial.seeds).sum())
        for method, trial in evaluated.items()
    }
    if any(lost.values()):
        shown = [
            f"{method} {number} of {num_seeds[method]}"
            for method, number in lost.items()
            if number
        ]
        found.append(f"Seeds that diverged: {', '.join(shown)}. {LOST}")
    return found


def pair(
    values: np.ndarray, reference: np.ndarray, more_is_better: bool, rng_seed: int
) -> Paired:
    """Compares the scores of two methods.

    Args:
      values: [seeds], at least two, infinite for a lost seed.
      reference: the reference's scores on the same seeds.
      more_is_better: whether a higher score is better.
      rng_seed: seed of the resampling.
    """
    difference = ranking.difference_of(values, reference)
    better = difference > 0 if more_is_better else difference < 0
    won = np.mean(better + 0.5 * (difference == 0))
    with np.errstate(invalid="ignore"):  # If the methods lose different seeds.
        mean = float(difference.mean())
    low, high = mean_interval(difference, rng_seed)
    if np.isnan(low):
        verdict = "diverged"
    elif low <= 0 <= high:
        verdict = "undecided"
    else:
        verdict = "better" if (mean > 0) == more_is_better else "worse"
    return Paired(mean, low, high, float(won), verdict)


def mean_interval(values: np.ndarray, rng_seed: int) -> tuple[float, float]:
    """Returns the ends of a 95 % confidence interval of a mean over seeds.

    The percentile bootstrap is too narrow for few seeds: for normal values, its
    coverage is 90 % with 10 seeds and 93 % with 30, instead of 95 %; BCa and the basic
    bootstrap do no better. Its level is therefore raised until it is as wide as
    Student's t for normal values. In 2,000 simulated comparisons each of normal,
    Laplace and Student's t3 values, this covers 94 to 96 % from 8 seeds on; for
    exponential values, 89 % with 8 seeds and 94 % with 30, slightly more than Student's
    t. With fewer seeds, resampling cannot be wide enough, and Student's t is used.

    Args:
      values: [seeds].
      rng_seed: seed of the resampling; equal values give equal intervals.

    Returns:
      Low and high end; NaN for a single value, or if a value is not finite.

    Source: Hesterberg, "What teachers should know about the bootstrap", The American
    Statistician 69, 2015, section 4 (the expanded percentile interval).
    """
    from scipy import stats

    number = values.size
    if number < 2 or not np.isfinite(values).all():
        return np.nan, np.nan
    quantile = stats.t.ppf((1 + _LEVEL) / 2, number - 1)
    if number < FEWEST_TO_RESAMPLE:
        half_width = quantile * stats.sem(values)
        return float(values.mean() - half_width), float(values.mean() + half_width)
    tail = stats.norm.cdf(-quantile * np.sqrt(number / (number - 1)))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_NUM_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(rng_seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def interquartile_mean(values: np.ndarray) -> float:
    """Averages the middle half of values: cuts a quarter, rounded down, at each end.

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical
    precipice", NeurIPS 2021.
    """
    from scipy import stats

    return float(stats.trim_mean(values, 0.25))

"""The outcome of a comparison in words and numbers: Markdown and CSV."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.reporting import paired
from experiments.reporting.choosing import Choice, usual_trials
from experiments.reporting.comparison import SCORES, Comparison, Score
from experiments.reporting.tables import format_table
from experiments.reporting.trials import Trial

EDGE = "†"
"""Marks a strength at the edge of what was tried."""
UNEQUAL = "*"
"""Marks a number of trials that is not that of most methods."""


def markdown(comparison: Comparison) -> str:
    """Writes a comparison: what was done, a table for each score, the choices."""
    reference = comparison.judged[comparison.reference]
    tried = max(comparison.choices, key=lambda choice: len(choice.trials)).trial
    parts = [
        f"# Comparison with {comparison.reference}",
        f"{_basis('Strengths are chosen', tried, comparison.tuning_seeds)} "
        f"{_basis('Methods are judged', reference, reference.seeds)} Differences are "
        "means over paired seeds, method minus reference, with 95 % intervals: "
        f"bootstrap, below {paired.FEWEST_TO_RESAMPLE} seeds Student's t. They are not "
        "widened for the number of methods: of 20 that are like the reference, about "
        "one seems better or worse by chance.",
    ]
    if comparison.warnings:
        parts.append("\n".join(f"* {warning}" for warning in comparison.warnings))
    for score in SCORES:
        direction = "more" if score.more_is_better(reference) else "less"
        unit = "accuracy %" if reference.more_is_better else "squared error"
        title = score.title[0].upper() + score.title[1:]
        parts += [
            f"## {title}, {unit}: {direction} is better",
            verdict_table(comparison, score),
        ]
    parts += ["## Strengths", choice_table(comparison.choices)]
    return "\n\n".join(parts) + "\n"


def verdict_table(comparison: Comparison, score: Score) -> str:
    """Lays out one line for each method, the best difference first."""
    choices = {choice.method: choice for choice in comparison.choices}
    rows = []
    for verdict in comparison.verdicts[score.name]:
        pair, trial = verdict.paired, comparison.judged[verdict.method]
        lost = f", {verdict.num_lost} diverged" if verdict.num_lost else ""
        row = {
            "method": verdict.method,
            "strength": _strength(choices[verdict.method]),
            "seeds": f"{verdict.num_seeds}{lost}",
            "mean": _number(verdict.mean, trial),
            "interquartile mean": _number(verdict.interquartile_mean, trial),
            "difference": _number(pair.difference, trial, "+"),
            "95 % interval": "-"
            if np.isnan(pair.low)
            else f"{_number(pair.low, trial, '+')} to {_number(pair.high, trial, '+')}",
            "seeds won": f"{100 * pair.won:.0f} %",
            "verdict": pair.verdict,
        }
        if verdict.method == comparison.reference:
            row |= dict.fromkeys(("difference", "95 % interval", "seeds won"), "")
            row["verdict"] = "reference"
        rows.append(row)
    return format_table(rows)


def choice_table(choices: Sequence[Choice]) -> str:
    """Lays out one line for each method: what it tried and what was chosen."""
    usual = usual_trials(choices)
    rows = []
    for choice in choices:
        number = len(choice.trials)
        score = _number(choice.scores[choice.best], choice.trial)
        rows.append(
            {
                "method": choice.method,
                "trials": f"{number}{UNEQUAL if number != usual else ''}",
                "chosen": _strength(choice),
                "tried": _tried(choice),
                "mean of tuning seeds": score,
                "lanes diverged": str(sum(choice.num_lost)),
            }
        )
    return (
        f"{format_table(rows)}\n\n{EDGE} at the edge of what was tried; {UNEQUAL} not "
        "the number of trials of most methods."
    )


def verdicts_csv(comparison: Comparison) -> str:
    """Writes one line for each score and method; accuracies are fractions."""
    choices = {choice.method: choice for choice in comparison.choices}
    rows = [
        {
            "score": score.name,
            "method": verdict.method,
            "strength": _parameters(choices[verdict.method].trial),
            "trials": len(choices[verdict.method].trials),
            "at_edge": " ".join(choices[verdict.method].at_edge),
            "seeds": verdict.num_seeds,
            "diverged": verdict.num_lost,
            "mean": verdict.mean,
            "interquartile_mean": verdict.interquartile_mean,
            **verdict.paired._asdict(),
            "reference": comparison.reference,
        }
        for score in SCORES
        for verdict in comparison.verdicts[score.name]
    ]
    return _csv(rows)


def trials_csv(choices: Sequence[Choice]) -> str:
    """Writes one line for each trial of each method on the tuning seeds."""
    rows = [
        {
            "method": choice.method,
            "strength": _parameters(trial),
            "mean": choice.scores[index],
            "diverged": choice.num_lost[index],
            "chosen": index == choice.best,
        }
        for choice in choices
        for index, trial in enumerate(choice.trials)
    ]
    return _csv(rows)


def flags(choices: Sequence[Choice]) -> list[str]:
    """Writes what leaves a run the chosen strengths only, where cases have sweeps."""
    return [
        f"--config.cases.{choice.method}.sweep.{name}='({value!r},)'"
        for choice in choices
        for name, value in choice.trial.strength.items()
    ]


def _csv(rows: Sequence[dict[str, object]]) -> str:
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.9g")


def _number(value: float, trial: Trial, sign: str = "") -> str:
    """Writes a score: accuracies in percent."""
    if np.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if trial.more_is_better else f"{value:{sign}.3f}"


def _parameters(trial: Trial) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.strength.items())


def _strength(choice: Choice) -> str:
    """Writes what was chosen, with a mark at the edge."""
    return ", ".join(
        f"{name} {value:g}{f' {EDGE}' if name in choice.at_edge else ''}"
        for name, value in choice.trial.strength.items()
    )


def _tried(choice: Choice) -> str:
    """Writes the values of each hyper-parameter that differs between trials."""
    values: dict[str, set[float]] = {}
    for trial in choice.trials:
        for name, value in trial.strength.items():
            values.setdefault(name, set()).add(value)
    return "; ".join(
        f"{name} {', '.join(f'{value:g}' for value in sorted(tried))}"
        for name, tried in values.items()
    )


def _basis(what: str, trial: Trial, seeds: Sequence[int]) -> str:
    if not seeds:
        return f"{what} on no seeds."
    return f"{what} on {_listed(seeds)} and {trial.results.sizes['task']} tasks."


def _listed(seeds: Sequence[int]) -> str:
    """Writes seeds, a run of them by its ends."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"

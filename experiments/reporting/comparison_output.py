"""Writes the outcome of a comparison as Markdown, CSV and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting import files, plots, scales, statistics, tuning
from experiments.reporting.comparison import (
    FEWEST_TO_RESAMPLE,
    SCORES,
    Choice,
    Comparison,
    Score,
    usual_trials,
)
from experiments.reporting.styles import in_words, method_style
from experiments.reporting.tables import format_table
from experiments.reporting.trials import Trial

if TYPE_CHECKING:
    import xarray as xr

EDGE = "†"
"""Marks a setting at the edge of the values tried."""
_NOT_CORRECTED = (
    "They are not corrected for the number of methods: of 20 methods that equal the "
    "reference, about one will appear better or worse by chance."
)
_CORRECTED = (
    "Verdicts are paired t-tests, or sign tests if an error is infinite, corrected for "
    "the number of methods by Holm's method: if all methods equal the reference, the "
    "chance that any of them appears better or worse is 5 %. The column p has the "
    "corrected p-values; intervals are not corrected. P(improvement) is the "
    "probability that a run of the method is better than a run of the reference."
)
_COST_SEEDS = (
    "Each tuning seed scores the trials that the other tuning seeds choose. With one "
    "tuning seed, the scores are too good."
)
FEW_TRIALS = 4
"""A small budget of tuning, whose expected score the ranking shows."""
UNEQUAL = "*"
"""Marks a number of trials that differs from that of most methods."""


def write(comparison: Comparison, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes all tables and figures of a comparison.

    Args:
      comparison: a comparison of at least one method with the reference.
      folder: the folder to write to, created if needed.

    Returns:
      The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in files.COMPARISON_FILES]
    text, verdicts, trials, differences, curves = paths
    text.write_text(markdown(comparison), encoding="utf-8")
    verdicts.write_text(verdicts_csv(comparison))
    trials.write_text(trials_csv(comparison.choices))
    draw_differences(comparison, differences)
    draw_curves(comparison, curves)
    choices, seeds = _searched(comparison), comparison.tuning_seeds
    if comparison.groups is None or not choices:
        return paths
    costs, cost, sensitivity = (folder / name for name in files.SEARCH_FILES)
    costs.write_text(costs_csv(comparison))
    tuning.draw_cost(choices, seeds, cost)
    tuning.draw_sensitivity(choices, sensitivity)
    return [*paths, costs, cost, sensitivity]


def markdown(comparison: Comparison) -> str:
    """Writes a comparison: a summary, a table for each score, and the choices.

    That of a search begins with the ranking and ends with the cost of tuning.
    """
    reference = comparison.evaluated[comparison.reference]
    is_search = comparison.groups is not None
    tried = max(comparison.choices, key=lambda choice: len(choice.trials)).trial
    parts = [
        f"# Comparison with {comparison.reference}",
        f"{_basis('Settings are chosen', tried, comparison.tuning_seeds)} "
        f"{_basis('Methods are evaluated', reference, reference.seeds)} "
        "Differences are means over paired seeds, method minus reference, with "
        "95 % intervals: bootstrap, or Student's t for fewer than "
        f"{FEWEST_TO_RESAMPLE} seeds. {_CORRECTED if is_search else _NOT_CORRECTED}",
    ]
    if comparison.warnings:
        parts.append("\n".join(f"* {warning}" for warning in comparison.warnings))
    unit = "accuracy %" if reference.more_is_better else "squared error"
    if is_search:
        parts += [f"## Ranking, {unit}", ranking_table(comparison)]
    for score in SCORES:
        direction = "more" if score.more_is_better(reference) else "less"
        title = score.title[0].upper() + score.title[1:]
        parts += [
            f"## {title}, {unit}: {direction} is better",
            verdict_table(comparison, score),
        ]
    parts += ["## Hyperparameters", choice_table(comparison.choices)]
    if is_search and _searched(comparison):
        parts += [f"## Cost of tuning, {unit}", cost_table(comparison)]
    return "\n\n".join(parts) + "\n"


def verdict_table(comparison: Comparison, score: Score) -> str:
    """Returns a table with one line per method, the best difference first."""
    choices = {choice.method: choice for choice in comparison.choices}
    rows = []
    for verdict in comparison.verdicts[score.name]:
        pair, trial = verdict.paired, comparison.evaluated[verdict.method]
        lost = f", {verdict.num_lost} diverged" if verdict.num_lost else ""
        row = {
            "method": verdict.method,
            "hyperparameters": _setting(choices[verdict.method]),
            "seeds": f"{verdict.num_seeds}{lost}",
            "mean": _number(verdict.mean, trial),
            "interquartile mean": _number(verdict.interquartile_mean, trial),
            "difference": _number(pair.difference, trial, "+"),
            "95 % interval": "-"
            if np.isnan(pair.low)
            else f"{_number(pair.low, trial, '+')} to {_number(pair.high, trial, '+')}",
            "seeds won": f"{100 * pair.won:.0f} %",
        }
        if comparison.groups is not None:
            row["P(improvement)"] = _fraction(verdict.improvement)
            row["p"] = _p_value(verdict.p_value)
        row["verdict"] = pair.verdict
        if verdict.method == comparison.reference:
            row |= dict.fromkeys(("difference", "95 % interval", "seeds won"), "")
            row["verdict"] = "reference"
        rows.append(row)
    return format_table(rows)


def choice_table(choices: Sequence[Choice]) -> str:
    """Returns a table of the settings tried and chosen, one line per method."""
    usual = usual_trials(choices)
    rows = []
    for choice in choices:
        number = len(choice.trials)
        score = _number(choice.scores[choice.best], choice.trial)
        rows.append(
            {
                "method": choice.method,
                "trials": f"{number}{UNEQUAL if number != usual else ''}",
                "chosen": _setting(choice),
                "tried": _tried(choice),
                "mean of tuning seeds": score,
                "lanes diverged": str(sum(choice.num_lost)),
            }
        )
    edge = "at the edge of the values tried"
    if any(choice.ranges for choice in choices):
        edge = "in the outer tenth of its range"
    return (
        f"{format_table(rows)}\n\n{EDGE} {edge}; {UNEQUAL} number of trials differs "
        "from most methods."
    )


def ranking_table(comparison: Comparison) -> str:
    """Returns a table of all methods, the best first, with groups of equals.

    It has everything that a reader needs at first: the setting, the mean over all
    tasks, the difference to the reference by each score, and what few trials would
    give.
    """
    letters: dict[str, str] = {}
    for number, group in enumerate(comparison.groups or ()):
        for method in group:
            letters[method] = f"{letters.get(method, '')}{_letter(number)}"
    choices = {choice.method: choice for choice in comparison.choices}
    pairs = {
        score.name: {one.method: one.paired for one in comparison.verdicts[score.name]}
        for score in SCORES
    }
    few = FEW_TRIALS if _searched(comparison) else 0
    rows = []
    for verdict in comparison.verdicts[SCORES[0].name]:
        method, choice = verdict.method, choices[verdict.method]
        trial = comparison.evaluated[method]
        is_reference = method == comparison.reference
        row = {
            "method": method,
            "group": letters[method],
            "setting": _setting(choice, two_digits),
            "mean": _number(verdict.mean, trial),
        }
        for score in SCORES:
            pair = pairs[score.name][method]
            ends = ", ".join(_number(end, trial, "+") for end in (pair.low, pair.high))
            row[score.name.replace("_", " ")] = (
                ""
                if is_reference
                else f"{_number(pair.difference, trial, '+')} [{ends}]"
            )
        row["verdict"] = "reference" if is_reference else verdict.paired.verdict
        if few:
            curve = tuning.cost_curves(choice, comparison.tuning_seeds).mean(axis=0)
            at_few = few <= len(curve)
            row[f"best of {few}"] = _number(curve[few - 1], trial) if at_few else ""
        rows.append(row)
    notes = [
        "Methods with a letter in common cannot be told apart by the "
        f"{SCORES[0].title}: in paired tests of all methods, corrected for the number "
        "of pairs by Holm's method, no two of them differ at a level of 5 %.",
        "The columns with brackets are differences to "
        f"{comparison.reference} with 95 % intervals.",
    ]
    if few:
        notes.append(
            f"Best of {few}: the mean expected after so many trials, on tuning seeds."
        )
    return f"{format_table(rows)}\n\n{' '.join(notes)}"


def cost_table(comparison: Comparison) -> str:
    """Returns a table of the score that is expected of so many trials."""
    choices, rows = _searched(comparison), []
    numbers = tuning.numbers_of_trials(choices)
    for choice in choices:
        curve = tuning.cost_curves(choice, comparison.tuning_seeds).mean(axis=0)
        cells = {
            f"best of {number}": _number(curve[number - 1], choice.trial)
            if number <= len(curve)
            else ""
            for number in numbers
        }
        rows.append({"method": choice.method} | cells)
    return (
        f"{format_table(rows)}\n\nExpected score of the best of so many random trials, "
        f"by the {SCORES[0].title}. {_COST_SEEDS}"
    )


def verdicts_csv(comparison: Comparison) -> str:
    """Writes one line per score and method; accuracies are fractions."""
    choices = {choice.method: choice for choice in comparison.choices}
    rows = [
        {
            "score": score.name,
            "method": verdict.method,
            "hyperparameters": _parameters(choices[verdict.method].trial),
            "trials": len(choices[verdict.method].trials),
            "at_edge": " ".join(choices[verdict.method].at_edge),
            "seeds": verdict.num_seeds,
            "diverged": verdict.num_lost,
            "mean": verdict.mean,
            "interquartile_mean": verdict.interquartile_mean,
            **verdict.paired._asdict(),
            **(
                {}
                if comparison.groups is None
                else {"p_value": verdict.p_value, "improvement": verdict.improvement}
            ),
            "reference": comparison.reference,
        }
        for score in SCORES
        for verdict in comparison.verdicts[score.name]
    ]
    return _csv(rows)


def trials_csv(choices: Sequence[Choice]) -> str:
    """Writes one line per trial of each method on the tuning seeds."""
    rows = [
        {
            "method": choice.method,
            "hyperparameters": _parameters(trial),
            "mean": choice.scores[index],
            "diverged": choice.num_lost[index],
            "chosen": index == choice.best,
        }
        for choice in choices
        for index, trial in enumerate(choice.trials)
    ]
    return _csv(rows)


def costs_csv(comparison: Comparison) -> str:
    """Writes one line per method, tuning seed and number of trials."""
    rows = [
        {
            "method": choice.method,
            "seed": seed,
            "trials": number,
            "expected_best": score,
        }
        for choice in _searched(comparison)
        for seed, curve in zip(
            comparison.tuning_seeds,
            tuning.cost_curves(choice, comparison.tuning_seeds),
            strict=True,
        )
        for number, score in enumerate(curve, start=1)
    ]
    return _csv(rows)


def flags(choices: Sequence[Choice]) -> list[str]:
    """Returns flags that give a run the chosen settings.

    They restrict a run's sweeps; those of a search are for a run without a search.
    """
    return [
        f"--config.cases.{choice.method}.{name}={value!r}"
        if choice.ranges
        else f"--config.cases.{choice.method}.sweep.{name}='({value!r},)'"
        for choice in choices
        for name, value in choice.trial.setting.items()
    ]


def _searched(comparison: Comparison) -> list[Choice]:
    """Returns the choices among several trials."""
    return [choice for choice in comparison.choices if len(choice.trials) > 1]


def _letter(number: int) -> str:
    """Returns the name of a group: a to z, then a1 to z1 and so on."""
    turn, place = divmod(number, 26)
    return f"{chr(ord('a') + place)}{turn or ''}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _csv(rows: Sequence[dict[str, object]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows).to_csv(index=False, float_format="%.9g")


def _number(value: float, trial: Trial, sign: str = "") -> str:
    """Writes a score; accuracies are in percent."""
    if np.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if trial.more_is_better else f"{value:{sign}.3f}"


def _parameters(trial: Trial) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.setting.items())


def two_digits(value: float) -> str:
    """Writes two significant digits, of the distance from 1 for decay rates near it."""
    if 0.9 < value < 1:
        return f"{1 - float(f'{1 - value:.2g}'):g}"
    return f"{float(f'{value:.2g}'):g}"


def _setting(choice: Choice, write: Callable[[float], str] = "{:g}".format) -> str:
    """Writes the chosen setting, with a mark at values on the edge."""
    return ", ".join(
        f"{name} {write(value)}{f' {EDGE}' if name in choice.at_edge else ''}"
        for name, value in choice.trial.setting.items()
    )


def _tried(choice: Choice) -> str:
    """Writes the values or ranges tried for each hyperparameter that differs."""
    values: dict[str, set[float]] = {}
    for trial in choice.trials:
        for name, value in trial.setting.items():
            values.setdefault(name, set()).add(value)
    texts = []
    for name, tried in values.items():
        scale, ends = choice.ranges.get(name, (scales.CHOICE, ()))
        if scale == scales.CHOICE:
            text = ", ".join(f"{value:g}" for value in sorted(tried))
        else:
            text = f"{ends[0]:g} to {ends[1]:g}"
        texts.append(f"{name} {text}")
    return "; ".join(texts)


def _basis(what: str, trial: Trial, seeds: Sequence[int]) -> str:
    if not seeds:
        return f"{what} on no seeds."
    return f"{what} on {_listed(seeds)} and {trial.results.sizes['task']} tasks."


def _listed(seeds: Sequence[int]) -> str:
    """Writes seeds; consecutive seeds are written as a range."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"


def draw_differences(comparison: Comparison, path: pathlib.Path) -> pathlib.Path:
    """Draws the differences to the reference with their intervals.

    There is one panel per score; methods are ordered by the first score, the best on
    top. An infinite difference is an arrow at the border of the panel; a mark shows
    that the best setting of a method is at the edge of its grid.

    Args:
      comparison: a comparison of at least one method with the reference.
      path: the file to write.

    Returns:
      The path.
    """
    reference = comparison.evaluated[comparison.reference]
    order = [
        verdict.method
        for verdict in comparison.verdicts[SCORES[0].name]
        if verdict.method != comparison.reference
    ]
    factor, unit = (
        (100, "points of accuracy")
        if reference.more_is_better
        else (1, "squared error")
    )
    figure, axes = plots.subplots(
        1,
        len(SCORES),
        sharey=True,
        figsize=(4 * len(SCORES), 1.3 + 0.26 * len(order)),
    )
    for axis, score in zip(axes[0], SCORES, strict=True):
        pairs = {one.method: one.paired for one in comparison.verdicts[score.name]}
        for row, method in enumerate(order):
            _draw_interval(axis, row, np.array(pairs[method][:3]) * factor, method)
        axis.axvline(0, color="black", linewidth=0.8, zorder=0)
        more_is_better = score.more_is_better(reference)
        direction = "better →" if more_is_better else "← better"
        axis.set_title(score.title, fontsize="medium")
        axis.set_xlabel(f"{unit} ({direction})")
        axis.grid(axis="y", alpha=0.3)
    at_edge = {choice.method for choice in comparison.choices if choice.at_edge}
    labels = [
        f"{in_words(method)} {EDGE if method in at_edge else ''}" for method in order
    ]
    axes[0, 0].set_yticks(range(len(order)), labels)
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    title = (
        f"Difference to {in_words(comparison.reference)} on the same seeds, 95 % "
        "intervals"
    )
    if at_edge:
        where = "at the edge of its grid"
        if comparison.groups is not None:
            where = "in the outer tenth of its range"
        title += f" ({EDGE} best value {where})"
    figure.suptitle(title, fontsize="medium")
    return plots.save(figure, path)


def draw_curves(comparison: Comparison, path: pathlib.Path) -> pathlib.Path:
    """Draws all measures of the chosen settings on the evaluation seeds.

    The figure is that of `plots.draw_settings`. A seed that diverged has accuracy 0
    from then on; a line of errors ends where its first seed diverges.
    """
    settings = [
        ({"case": method}, _with_lost(trial))
        for method, trial in comparison.evaluated.items()
    ]
    return plots.draw_settings(settings, path)


def _draw_interval(axis: Any, row: int, ends: np.ndarray, method: str) -> None:
    """Draws a difference and the low and high end of its interval as one row."""
    difference, low, high = ends
    style = method_style(method)
    if np.isfinite(difference):
        axis.plot([low, high], [row, row], color=style.color, linewidth=1.5)
        axis.plot(difference, row, color=style.color, marker=style.marker, markersize=5)
    elif np.isinf(difference):
        axis.plot(
            1 if difference > 0 else 0,
            row,
            color=style.color,
            marker=">" if difference > 0 else "<",
            markersize=7,
            transform=axis.get_yaxis_transform(),
            clip_on=False,
        )


def _with_lost(trial: Trial) -> xr.Dataset:
    name = statistics.score_name(trial.results)
    scores = trial.scores(trial.seeds)
    # Hides infinite means; the mean error of only the other seeds would be too good.
    scores[:, np.isinf(scores).any(axis=0)] = np.nan
    results = trial.results.sel(seed=trial.seeds)
    return results.assign({name: (("seed", "task"), scores)})

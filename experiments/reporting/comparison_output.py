"""Writes the outcome of a comparison as Markdown, CSV and figures."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting import files, plots, statistics
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
    return paths


def markdown(comparison: Comparison) -> str:
    """Writes a comparison: a summary, a table for each score, and the choices."""
    reference = comparison.evaluated[comparison.reference]
    tried = max(comparison.choices, key=lambda choice: len(choice.trials)).trial
    parts = [
        f"# Comparison with {comparison.reference}",
        f"{_basis('Settings are chosen', tried, comparison.tuning_seeds)} "
        f"{_basis('Methods are evaluated', reference, reference.seeds)} "
        "Differences are means over paired seeds, method minus reference, with "
        "95 % intervals: bootstrap, or Student's t for fewer than "
        f"{FEWEST_TO_RESAMPLE} seeds. They are not corrected for the number of "
        "methods: of 20 methods that equal the reference, about one will appear better "
        "or worse by chance.",
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
    parts += ["## Hyperparameters", choice_table(comparison.choices)]
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
            "verdict": pair.verdict,
        }
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
    return (
        f"{format_table(rows)}\n\n{EDGE} at the edge of the values tried; {UNEQUAL} "
        "number of trials differs from most methods."
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


def flags(choices: Sequence[Choice]) -> list[str]:
    """Returns flags that restrict a run's sweeps to the chosen settings."""
    return [
        f"--config.cases.{choice.method}.sweep.{name}='({value!r},)'"
        for choice in choices
        for name, value in choice.trial.setting.items()
    ]


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


def _setting(choice: Choice) -> str:
    """Writes the chosen setting, with a mark at values on the edge."""
    return ", ".join(
        f"{name} {value:g}{f' {EDGE}' if name in choice.at_edge else ''}"
        for name, value in choice.trial.setting.items()
    )


def _tried(choice: Choice) -> str:
    """Writes the values tried for each hyperparameter that differs between trials."""
    values: dict[str, set[float]] = {}
    for trial in choice.trials:
        for name, value in trial.setting.items():
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
        title += f" ({EDGE} best value at the edge of its grid)"
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

"""What a method costs to tune, and how it depends on each hyperparameter.

All numbers are of the tuning seeds, so that the evaluation seeds stay fresh.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import pathlib
from typing import Any

import numpy as np

from experiments.reporting import plots, scales
from experiments.reporting.comparison import Choice
from experiments.reporting.styles import in_words, method_style, position

_MOST_COLUMNS = 6
# Larger errors, in multiples of the largest that any method chose, are not drawn.
_TIMES_THE_CHOSEN = 2


def expected_best(values: np.ndarray) -> np.ndarray:
    """Returns the expected value of the best of k trials, for k = 1 to N.

    The k trials are drawn from all N without replacement. The trial of rank r = 1 .. N
    is the best of them with probability C(N - r, k - 1) / C(N, k).

    Args:
      values: [N], of the trials from the best to the worst. They need not be what the
        trials are ranked by.

    Returns:
      [N], infinite where an infinite value can be the best.
    """
    number = len(values)
    curve = []
    for drawn in range(1, number + 1):
        weights = [
            math.comb(number - rank, drawn - 1) / math.comb(number, drawn)
            for rank in range(1, number - drawn + 2)
        ]
        curve.append(np.dot(weights, values[: len(weights)]))
    return np.array(curve)


def cost_curves(choice: Choice, seeds: Sequence[int]) -> np.ndarray:
    """Returns the score of a method against the number of its trials.

    Each seed in turn scores the trials that the other seeds choose; if the seed that
    scores a trial also chose it, the score would be too good.

    Args:
      choice: the trials of a method.
      seeds: the tuning seeds. A single seed both chooses and scores.

    Returns:
      [seeds, trials], the score that is expected of the best of so many trials.
    """
    curves = []
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        order = sorted(choice.trials, key=lambda trial: trial.rank(others))
        curves.append(
            expected_best(np.array([trial.scores([seed]).mean() for trial in order]))
        )
    return np.array(curves)


def numbers_of_trials(choices: Sequence[Choice]) -> list[int]:
    """Returns the numbers of trials that tables show: powers of 2, and the largest."""
    largest = max(len(choice.trials) for choice in choices)
    return [2**power for power in range(largest.bit_length()) if 2**power < largest] + [
        largest
    ]


def draw_cost(
    choices: Sequence[Choice], seeds: Sequence[int], path: pathlib.Path
) -> pathlib.Path:
    """Draws the score against the number of trials, one line per method.

    Lines are means over seeds. An error far above those of the chosen trials is out of
    the panel.

    Args:
      choices: the trials of all methods.
      seeds: the tuning seeds.
      path: the file to write.
    """
    measure = _measure(choices)
    shown = sorted(choices, key=lambda choice: position(choice.method))
    rows = plots.rows_of([({"case": choice.method}, choice) for choice in shown])
    figure, axes = plots.subplots(
        *(len(rows), 1), sharex=True, sharey=True, figsize=(6, 3 * len(rows))
    )
    for (axis,), (title, row) in zip(axes, rows.items(), strict=True):
        for label, style, choice in plots.lines_of(row):
            curves = measure.factor * cost_curves(choice, seeds)
            curves[:, np.isinf(curves).any(axis=0)] = np.nan
            plots.draw_curves(
                axis,
                np.arange(1, curves.shape[1] + 1),
                curves,
                style,
                highest=measure.highest,
                band="",
                label=label,
            )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylabel(measure.label)
        if title:
            plots.legend_beside(axis, title)
    axes[-1, 0].set_xlabel("trials to choose from")
    _cut(axes, measure, choices)
    if list(rows) == [""]:
        plots.legend_above(figure, axes[0, 0].lines, num_columns=3)
    return plots.save(figure, path)


def draw_sensitivity(choices: Sequence[Choice], path: pathlib.Path) -> pathlib.Path:
    """Draws the score of each trial over each hyperparameter of its method.

    There is one panel per method and hyperparameter; all have the same axis of scores,
    means over tasks and tuning seeds. A ring marks the chosen trial. A cross at the top
    is a trial whose error is far above those of the chosen trials, or infinite.

    Args:
      choices: the trials of all methods, some of which have several.
      path: the file to write.
    """
    panels = [
        (choice, name)
        for choice in sorted(choices, key=lambda choice: position(choice.method))
        for name in choice.trial.setting
    ]
    measure = _measure(choices)
    num_columns = min(_MOST_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, axes = plots.subplots(
        *(num_rows, num_columns),
        sharey=True,
        figsize=(2.3 * num_columns, 2 * num_rows),
    )
    for axis, (choice, name) in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, choice, name, measure.factor, _top(measure, choices))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel(measure.label, fontsize="small")
    _cut(axes, measure, choices)
    return plots.save(figure, path)


def _measure(choices: Sequence[Choice]) -> plots.Measure:
    """Returns how the score is drawn."""
    name = choices[0].trial.score_name
    return next(measure for measure in plots.MEASURES if measure.variable == name)


def _top(measure: plots.Measure, choices: Sequence[Choice]) -> float:
    """Returns the highest value that figures show."""
    best = measure.factor * np.array([choice.scores[choice.best] for choice in choices])
    finite = best[np.isfinite(best)]
    if np.isfinite(measure.highest) or not finite.size:
        return measure.highest
    return _TIMES_THE_CHOSEN * float(finite.max())


def _cut(axes: np.ndarray, measure: plots.Measure, choices: Sequence[Choice]) -> None:
    """Limits panels with a common axis of scores to what figures show."""
    axis = axes[0, 0]
    axis.set_ylim(top=min(axis.get_ylim()[1], _top(measure, choices)))


def _draw_panel(
    axis: Any, choice: Choice, name: str, factor: float, top: float
) -> None:
    """Draws the scores of a method's trials over one hyperparameter."""
    values = np.array([trial.setting[name] for trial in choice.trials])
    scale, ends = choice.ranges.get(name, (scales.LOG, values))
    ends = np.array([min(ends), max(ends)])
    label = in_words(name)
    if scale == scales.LOG_COMPLEMENT:
        values, ends, label = 1 - values, 1 - ends[::-1], f"1 - {label}"
    scores = factor * np.array(choice.scores)
    style = method_style(choice.method)
    axis.plot(values, np.where(scores <= top, scores, np.nan), ".", color=style.color)
    best = choice.best
    axis.plot(values[best], scores[best], "o", color=style.color, fillstyle="none")
    lost = values[scores > top]
    if lost.size:
        at_top = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        axis.plot(lost, np.ones(lost.size), "x", color=style.color, **at_top)
    if scale != scales.LINEAR and ends[0] > 0:
        axis.set_xscale("log")
    axis.set_xticks(ends, [f"{end:.4g}" for end in ends])
    axis.set_xticks([], minor=True)
    axis.tick_params(labelsize="small")
    axis.set_title(in_words(choice.method), fontsize="small")
    axis.set_xlabel(label, fontsize="small")

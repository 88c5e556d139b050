"""The figures of a comparison: differences with intervals, and curves."""

import pathlib
from typing import Any

import numpy as np
import xarray as xr

from experiments.reporting import panels, plots, statistics
from experiments.reporting.comparison import SCORES, Comparison
from experiments.reporting.comparison_tables import EDGE
from experiments.reporting.styles import in_words, method_style
from experiments.reporting.trials import Trial


def draw_differences(comparison: Comparison, path: pathlib.Path) -> pathlib.Path:
    """Draws the differences to the reference with their intervals.

    One panel for each score; methods are ordered by the first score, the best on top.
    An infinite difference is an arrow at the border of the panel; a method whose best
    strength lies at the edge of its grid has a mark.

    Args:
      comparison: with at least one method beside the reference.
      path: the file to write.

    Returns:
      The path.
    """
    reference = comparison.judged[comparison.reference]
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
    figure, axes = panels.subplots(
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
        title += f" ({EDGE} best strength at the edge of its grid)"
    figure.suptitle(title, fontsize="medium")
    return panels.save(figure, path)


def draw_curves(comparison: Comparison, path: pathlib.Path) -> pathlib.Path:
    """Draws all measures of the chosen strengths on the judging seeds.

    As `plots.draw_settings` does; a seed that diverged has accuracy 0 from then on, and
    a line of errors ends where the first of its seeds does.
    """
    settings = [
        ({"case": method}, _with_lost(trial))
        for method, trial in comparison.judged.items()
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
    # No mean is infinite: errors of the other seeds alone would look too well.
    scores[:, np.isinf(scores).any(axis=0)] = np.nan
    results = trial.results.sel(seed=trial.seeds)
    return results.assign({name: (("seed", "task"), scores)})

"""Statistics over seeds, and the table that a run prints at its end."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
import xarray as xr

# Measures of layers in the table: column, factor, digits.
_LAST_MEASURED = {
    "dead_units": ("dead units %", 100, 1),
    "effective_rank": ("effective rank", 1, 1),
    "weight_magnitude": ("weight magnitude", 1, 4),
}


class Estimate(NamedTuple):
    """A mean over seeds with the half width of its 95 % confidence interval."""

    mean: float
    half_width: float
    num_seeds: int  # Seeds that have not diverged.


def estimate(values: np.ndarray) -> Estimate:
    """Averages values [seeds]; NaN is left out. Student's t with num_seeds - 1 d.f."""
    values = values[np.isfinite(values)]
    if not values.size:
        return Estimate(np.nan, np.nan, 0)
    if values.size == 1:
        return Estimate(float(values[0]), np.nan, 1)
    error = values.std(ddof=1) / np.sqrt(values.size)
    quantile = stats.t.ppf(0.975, values.size - 1)
    return Estimate(float(values.mean()), float(quantile * error), values.size)


def settings_of(dataset: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Goes through all settings: each case, then each point of the sweep."""
    swept = [name for name in dataset.dims if name not in ("seed", "task", "layer")]
    for point in itertools.product(*(dataset[name].values for name in swept)):
        labels = dict(zip(swept, point, strict=True))
        yield labels, dataset.sel(labels)


def over_layers(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Averages a variable of layers, weighted by their weights or units."""
    weights = dataset.num_weights if name == "weight_magnitude" else dataset.num_units
    return dataset[name].weighted(weights.fillna(0)).mean("layer")


def score_name(dataset: xr.Dataset) -> str:
    """Returns the variable that tells how well a problem is learned."""
    return "accuracy" if "accuracy" in dataset else "error"


def summary_table(dataset: xr.Dataset) -> str:
    """Lays out one line for each setting, means over seeds with 95 % intervals."""
    return format_table(
        [_summary(labels, setting) for labels, setting in settings_of(dataset)]
    )


def _summary(labels: Mapping[str, Any], setting: xr.Dataset) -> dict[str, str]:
    """Summarizes one setting: the columns of its line."""
    score = score_name(setting)
    is_accuracy = score == "accuracy"
    curve = setting[score].transpose("seed", "task").values * (
        100 if is_accuracy else 1
    )
    curve = curve[:, setting.examples.notnull().values]
    finished = np.isfinite(curve[:, -1]).sum()
    means = np.array([estimate(column).mean for column in curve.T])
    best = 0
    if np.isfinite(means).any():
        best = int(np.nanargmax(means) if is_accuracy else np.nanargmin(means))
    unit = "accuracy %" if is_accuracy else score
    columns = {name: label(value) for name, value in labels.items()} | {
        "seeds": f"{finished} of {len(curve)}",
        f"first {unit}": _interval(estimate(curve[:, 0])),
        f"best {unit}": f"{_interval(estimate(curve[:, best]))} (task {best})",
        f"last {unit}": _interval(estimate(curve[:, -1])),
    }
    for name, (column, factor, digits) in _LAST_MEASURED.items():
        if name in setting:
            last = estimate(_last_measured(over_layers(setting, name))).mean
            columns[column] = f"{factor * last:.{digits}f}"
    return columns | {"steps/s": f"{float(setting.steps_per_second):,.0f}"}


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Aligns rows of equal keys as a Markdown table."""
    header = list(rows[0])
    cells = [header, *([row[name] for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def diverged_lanes(dataset: xr.Dataset) -> list[str]:
    """Describes each lane that diverged: its setting, seed, and first task of NaN."""
    score = score_name(dataset)
    found = []
    for labels, setting in settings_of(dataset):
        has_run = setting.examples.notnull().values
        for seed in setting.seed.values:
            curve = setting[score].sel(seed=seed).values[has_run]
            if np.isnan(curve).any():
                names = ", ".join(f"{name} {label(v)}" for name, v in labels.items())
                task = int(np.isnan(curve).argmax())
                found.append(f"{names}, seed {seed}: diverged in task {task}")
    return found


def _last_measured(values: xr.DataArray) -> np.ndarray:
    """Takes the last task at which any seed was measured: [seeds]."""
    values = values.transpose("seed", "task").values
    measured = np.flatnonzero(np.isfinite(values).any(axis=0))
    return values[:, measured[-1]] if measured.size else values[:, -1]


def _interval(value: Estimate) -> str:
    half_width = "" if np.isnan(value.half_width) else f" ± {value.half_width:.2f}"
    return f"{value.mean:.2f}{half_width}"


def label(value: Any) -> str:
    """Writes a case name or a swept number."""
    return str(value) if isinstance(value, str) else f"{value:g}"

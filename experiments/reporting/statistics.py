"""Statistics over seeds, layers, and bins of tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


class Estimate(NamedTuple):
    """Means over seeds and their uncertainty; NaN where there are too few seeds."""

    mean: np.ndarray
    standard_error: np.ndarray
    half_width: np.ndarray  # Of the 95 % confidence interval, from Student's t.
    num_seeds: np.ndarray  # Seeds that have not diverged.


def estimate(values: np.ndarray) -> Estimate:
    """Averages values [seeds, ...] over seeds, ignoring NaN."""
    from scipy import stats

    is_finite = np.isfinite(values)
    num_seeds = is_finite.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(is_finite, values, 0).sum(axis=0) / num_seeds
        squares = np.where(is_finite, values - mean, 0) ** 2
        error = np.sqrt(squares.sum(axis=0) / (num_seeds - 1) / num_seeds)
    quantile = stats.t.ppf(0.975, num_seeds - 1)
    return Estimate(mean, error, quantile * error, num_seeds)


def over_layers(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Averages a variable over layers, weighted by their number of weights or units."""
    return dataset[name].weighted(layer_sizes(dataset, name)).mean("layer")


def layer_sizes(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Returns the weights of layers in an average: their number of weights or units.

    All are 0 if the variable has no meaning, such as units of a linear model.
    """
    sizes = dataset.num_weights if name == "weight_magnitude" else dataset.num_units
    return sizes.fillna(0)


def score_name(dataset: xr.Dataset) -> str:
    """Returns the variable that measures performance: "accuracy" or "error"."""
    return "accuracy" if "accuracy" in dataset else "error"


def tasks_per_bin(dataset: xr.Dataset) -> int:
    """Returns `config.tasks_per_bin` of a run; 1 if its problem has no bins."""
    return json.loads(dataset.attrs.get("config", "{}")).get("tasks_per_bin", 1)


def in_bins(curves: np.ndarray, size: int) -> np.ndarray:
    """Averages curves over bins of tasks, since tasks vary greatly in difficulty.

    Args:
      curves: [seeds, tasks].
      size: tasks per bin, at least 1; the last bin has the remaining tasks.

    Returns:
      [seeds, bins], NaN for a bin in which a seed diverges.
    """
    starts = np.arange(0, curves.shape[1], size)
    sizes = np.minimum(starts + size, curves.shape[1]) - starts
    return np.add.reduceat(curves, starts, axis=1) / sizes

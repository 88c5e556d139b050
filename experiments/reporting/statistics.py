"""Statistics over seeds, and the settings of a run one by one."""

from collections.abc import Iterator
import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
import xarray as xr

from experiments.reporting.run_results import NOT_SWEPT, swept_names


class Estimate(NamedTuple):
    """Means over seeds and how sure they are; NaN where there are too few seeds."""

    mean: np.ndarray
    standard_error: np.ndarray
    half_width: np.ndarray  # Of the 95 % confidence interval, by Student's t.
    num_seeds: np.ndarray  # Seeds that have not diverged.


def estimate(values: np.ndarray) -> Estimate:
    """Averages values [seeds, ...] over seeds; NaN is left out."""
    is_finite = np.isfinite(values)
    num_seeds = is_finite.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(is_finite, values, 0).sum(axis=0) / num_seeds
        squares = np.where(is_finite, values - mean, 0) ** 2
        error = np.sqrt(squares.sum(axis=0) / (num_seeds - 1) / num_seeds)
    quantile = stats.t.ppf(0.975, num_seeds - 1)
    return Estimate(mean, error, quantile * error, num_seeds)


def has_run(setting: xr.Dataset) -> bool:
    """Whether a setting was run, if only to diverge.

    Where a case has no results, or less points than another, examples are NaN.
    """
    return bool(setting.examples.notnull().any())


def settings_of(dataset: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Goes through all settings that were run: each case, then each of its points.

    The labels of a setting are its case and the values that its sweep has there.
    """
    varying = set(NOT_SWEPT) - {"case"}
    swept = [name for name in dataset.dims if name not in varying]
    swept.sort(key=lambda name: name != "case")  # The order of the others stays.
    for point in itertools.product(*(dataset[name].values for name in swept)):
        labels = dict(zip(swept, point, strict=True))
        setting = dataset.sel(labels)
        if not has_run(setting):
            continue
        if "point" in labels:
            del labels["point"]
            values = {name: setting[name].item() for name in swept_names(dataset)}
            labels |= {n: value for n, value in values.items() if not np.isnan(value)}
        yield labels, setting


def over_layers(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Averages a variable of layers, weighted by their weights or units."""
    return dataset[name].weighted(layer_sizes(dataset, name)).mean("layer")


def layer_sizes(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Returns what layers count in the average of a variable: their weights or units.

    All are 0 where the variable has no meaning, as units of a linear model.
    """
    sizes = dataset.num_weights if name == "weight_magnitude" else dataset.num_units
    return sizes.fillna(0)


def score_name(dataset: xr.Dataset) -> str:
    """Returns the variable that tells how well a problem is learned."""
    return "accuracy" if "accuracy" in dataset else "error"

"""Scores averaged over bins of tasks, where single tasks differ much in difficulty."""

import json

import numpy as np
import xarray as xr


def tasks_per_bin(dataset: xr.Dataset) -> int:
    """Returns `config.tasks_per_bin` of a run, 1 where its problem has no bins."""
    return json.loads(dataset.attrs.get("config", "{}")).get("tasks_per_bin", 1)


def in_bins(curves: np.ndarray, size: int) -> np.ndarray:
    """Averages curves over bins of tasks.

    Args:
      curves: [seeds, tasks].
      size: tasks of a bin, at least 1; the last bin has what is left.

    Returns:
      [seeds, bins], NaN for a bin in which a seed diverges.
    """
    starts = np.arange(0, curves.shape[1], size)
    sizes = np.minimum(starts + size, curves.shape[1]) - starts
    return np.add.reduceat(curves, starts, axis=1) / sizes

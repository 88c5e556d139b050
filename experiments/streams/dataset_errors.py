"""Errors of data sets, and their messages."""

from pathlib import Path

import numpy as np


class DatasetError(ValueError):
    """A data set is missing, damaged, or cannot be prepared."""


def damaged(path: Path, expected: str, found: str) -> DatasetError:
    """Returns the error for a damaged file."""
    return DatasetError(
        f"{path}: expected {expected}, found {found}; replace it with an intact copy "
        "of the original"
    )


def check_labels(labels: np.ndarray, num_classes: int, source: Path) -> None:
    """Raises DatasetError unless all labels are from 0 to `num_classes` - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        found = f"label {labels[wrong[0]]} at index {wrong[0]}"
        raise damaged(source, f"labels 0 to {num_classes - 1}", found)

"""The interface between a problem and a run, and the numbers that a task measures.

In compiled programs, numbers that were not measured are flagged rather than NaN.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.learning.learner import Learner, LearnerState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
    """Numbers of which some may not have been measured; these are NaN in NumPy.

    On a device they are not NaN, so that `jax_debug_nans` stops a program only if
    something went wrong.
    """

    values: jax.Array  # Any finite number where nothing was measured.
    is_measured: jax.Array  # bool, broadcasts to the values.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the values as a new NumPy array, NaN where not measured."""
        del copy
        values = np.asarray(self.values)
        return np.where(self.is_measured, values, np.nan).astype(dtype or values.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns entries of the NumPy array."""
        return np.asarray(self)[index]


class Problem(NamedTuple):
    """A stream of tasks, and how one learner is trained on it.

    Attributes:
      learner: the learner of the case.
      data: pytree of NumPy arrays that all lanes share, such as the images.
      run_task: `(hyperparameters, state, lane_key, task, data) -> (state, metrics)`, a
        pure function of one lane. `task` is an int32 scalar; it and the key determine
        everything about the task, so any task can be replayed alone. Metrics are a dict
        of scalars, including `loss`, and of arrays with one entry for each of
        `learner.layers`. Numbers that are not always measured are a `Measured`, never
        NaN.
      updates_per_task: number of updates in a task.
      examples_per_task: number of examples in a task.
    """

    learner: Learner
    data: Any
    run_task: Callable[
        [Any, LearnerState, jax.Array, jax.Array, Any],
        tuple[LearnerState, dict[str, jax.Array | Measured]],
    ]
    updates_per_task: int
    examples_per_task: int

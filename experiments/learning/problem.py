"""What a problem is to a run, and what it measures.

Numbers that are not measured everywhere are no NaN in a compiled program.
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
    """Numbers of which some may not have been measured; NumPy sees NaN in their place.

    On a device they hold no NaN of ours, so that `jax_debug_nans` stops a program only
    where something went wrong.
    """

    values: jax.Array  # Anything finite where nothing was measured.
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
    """A stream of tasks and how one learner meets it.

    Attributes:
      learner: the learner of the case.
      data: pytree of NumPy arrays that all lanes share, such as the images.
      run_task: `(hyperparameters, state, lane_key, task, data) -> (state, metrics)`, a
        pure function of one lane. `task` is an int32 scalar; everything about the task
        follows from it and the key, so any task can be replayed alone. Metrics are a
        dict of scalars, `loss` among them, and of arrays with one entry for each of
        `learner.layers`; what is not always measured is a `Measured`, never NaN.
      updates_per_task: updates of the learner in a task.
      examples_per_task: examples that a task shows.
    """

    learner: Learner
    data: Any
    run_task: Callable[
        [Any, LearnerState, jax.Array, jax.Array, Any],
        tuple[LearnerState, dict[str, jax.Array | Measured]],
    ]
    updates_per_task: int
    examples_per_task: int

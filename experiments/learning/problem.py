"""What a problem is to the runner."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.learning.learners import Learner, LearnerState
from experiments.learning.measured import Measured


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

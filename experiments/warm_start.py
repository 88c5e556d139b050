"""Warm Start: does a network that began with a part of the data generalize as well?

    python -m experiments.warm_start --config=configs/warm_start.py

The first phases train on a part of the data and the last one on all of it. After each
task, which is about one pass over all data, the network is tested on other images. A
learner with a cold start begins each phase afresh, with the initial weights of the
first; it sees the same images in the same order as the warm one.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import check_choice
from experiments.learning.learner import LearnerState
from experiments.learning.problem import Problem
from experiments.learning.stream_problem import make_stream_problem
from experiments.run import command_line
from experiments.streams import growing_data

STARTS = ("warm", "cold")
"""The values that `config.start` can have."""


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Methods that act when a task ends do so at the end of each phase but the last. With
    a cold start they do not act, and counts of updates, of resets and of a unit's age
    begin anew with each phase.

    Args:
      config: a config as in `configs/warm_start.py`.

    Returns:
      The problem, with the metrics of `make_stream_problem`, but that `accuracy` is on
      the test images, and `train_accuracy` on images of the task, both after it.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("start", config.start, STARTS)
    stream = growing_data.make_stream(config)
    starts = growing_data.phase_starts(config)[1:]
    is_cold = config.start == "cold"
    problem = make_stream_problem(
        config,
        stream.sample,
        input_shape=stream.input_shape,
        num_outputs=stream.num_classes,
        loss="cross_entropy",
        data=stream.data,
        evaluations=stream.evaluations,
        acts_after=lambda task: not is_cold and jnp.any(task + 1 == starts),
    )
    if is_cold:
        problem = problem._replace(run_task=_begin_afresh(problem, starts))
    return problem


def _begin_afresh(problem: Problem, starts: np.ndarray) -> Any:
    """Returns the `run_task` of a learner that begins afresh in the given tasks."""

    def run_task(
        hyperparameters: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: Any,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        state = lax.cond(
            jnp.any(task == starts),
            lambda: problem.learner.init(hyperparameters, lane_key),
            lambda: state,
        )
        state, measures = problem.run_task(hyperparameters, state, lane_key, task, data)
        if state.log is not None:  # Its steps are to count from the first task.
            start = jnp.max(jnp.where(starts <= task, starts, 0), initial=0)
            step = state.log.step + start * problem.updates_per_task
            state = state._replace(log=state.log._replace(step=step))
        return state, measures

    return run_task


if __name__ == "__main__":
    command_line.run("warm_start", make_problem)

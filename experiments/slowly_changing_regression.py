"""Slowly-Changing Regression: a target network seen through slowly drifting inputs.

    python -m experiments.slowly_changing_regression --config=configs/scr.py

A small network learns, one example at a time, what a larger network of linear threshold
units makes of random bits. A task is a bin of examples to average over: nothing is
reset or signaled, and the inputs drift at their own pace.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments.learning.checks import (
    check_batch_size,
    check_choice,
    check_measured_examples,
)
from experiments.learning.learner import LearnerState, make_learner
from experiments.learning.measures import layer_measures, task_measures
from experiments.learning.networks import make_mlp
from experiments.learning.problem import Problem
from experiments.run import command_line
from experiments.streams.drifting_bits import (
    Examples,
    check_stream,
    draw_task,
    unpack,
)


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: as in `configs/scr.py`.

    Returns:
      The problem; its metrics per bin are `error`, the squared error of predictions
      before the update, `loss`, which here is the same, and per layer what
      `layer_measures` finds on the first examples of the bin, before it, and
      `task_measures`.

    Raises:
      ValueError: a field out of range.
    """
    check_stream(config)
    check_choice("rank_method", config.rank_method, metrics.METHODS)
    check_measured_examples(config)
    check_batch_size(config, "examples_per_task", "drift_every")
    updates_per_task = config.examples_per_task // config.batch_size
    # The constant bit is no input of the learner: its weights are the biases.
    num_inputs = config.num_bits - 1
    learner = make_learner(
        config,
        make_mlp(config, 1),
        (num_inputs,),
        squared_error,
        updates_per_task=config.drift_every // config.batch_size,
    )

    def run_task(
        hyperparameters: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: Any,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        del data
        examples = draw_task(config, lane_key, task)
        measured = unpack(examples.words[: config.measured_examples], num_inputs)
        targets = examples.targets[: config.measured_examples]
        measures = layer_measures(
            config, learner, hyperparameters, state, measured, targets, task
        )

        def step(
            state: LearnerState, batch: Examples
        ) -> tuple[LearnerState, jax.Array]:
            inputs = unpack(batch.words, num_inputs)
            state, _, loss = learner.step(hyperparameters, state, inputs, batch.targets)
            return state, loss

        batches = jax.tree.map(
            lambda leaf: leaf.reshape(updates_per_task, config.batch_size), examples
        )
        new_state, losses = lax.scan(step, state, batches)
        error = jnp.mean(losses)
        return new_state, measures | {
            "error": error,
            "loss": error,
        } | task_measures(learner, state, new_state)

    return Problem(
        learner=learner,
        data={},
        run_task=run_task,
        updates_per_task=updates_per_task,
        examples_per_task=config.examples_per_task,
    )


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error, without a factor 1/2, of outputs `[B, 1]`, targets `[B]`."""
    return jnp.mean((outputs[:, 0] - targets) ** 2)


if __name__ == "__main__":
    command_line.run("slowly_changing_regression", make_problem)

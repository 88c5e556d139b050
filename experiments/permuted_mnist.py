"""Online Permuted MNIST: a stream of images whose pixels are permuted anew per task.

    python -m experiments.permuted_mnist --config=configs/pmnist.py

Each task draws a permutation of the pixels and shows images one at a time, in random
order, for one update each (or for one of each mini-batch, `config.batch_size`). Nothing
is reset or signaled at a change of task, but to methods that are defined by it.
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
from experiments.streams import datasets
from experiments.streams.permuted_images import SAMPLING, draw_task


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: as in `configs/pmnist.py`.

    Returns:
      The problem; its metrics per task are online `accuracy` (fraction), `loss`
      (cross-entropy in nats), both of predictions before the update, and per layer what
      `layer_measures` finds on images of the new task, before it, and `task_measures`.

    Raises:
      ValueError: a field out of range, or the data set cannot be loaded.
    """
    check_choice("sampling", config.sampling, SAMPLING)
    check_choice("rank_method", config.rank_method, metrics.METHODS)
    check_measured_examples(config)
    check_batch_size(config, "examples_per_task")
    updates_per_task = config.examples_per_task // config.batch_size
    dataset = datasets.load(config.dataset, config.data_dir)
    num_images = len(dataset.images)
    num_pixels = dataset.images[0].size
    network = make_mlp(config, dataset.num_classes)
    learner = make_learner(
        config, network, (num_pixels,), updates_per_task=updates_per_task
    )
    data = {
        "images": dataset.images.reshape(num_images, num_pixels),
        "labels": dataset.labels,
    }

    def run_task(
        hyperparameters: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: dict[str, jax.Array],
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        pixels, order = draw_task(config, lane_key, task, num_pixels, num_images)

        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            images = data["images"][indices][..., pixels]
            images = images.astype(jnp.float32) / jnp.float32(dataset.max_value)
            return images, data["labels"][indices]

        inputs, labels = read(order[: config.measured_examples])
        measures = layer_measures(
            config, learner, hyperparameters, state, inputs, labels, task
        )

        def step(
            state: LearnerState, indices: jax.Array
        ) -> tuple[LearnerState, tuple[jax.Array, jax.Array]]:
            images, labels = read(indices)
            state, outputs, loss = learner.step(hyperparameters, state, images, labels)
            return state, (jnp.argmax(outputs, axis=-1) == labels, loss)

        batches = order.reshape(updates_per_task, config.batch_size)
        new_state, (is_correct, losses) = lax.scan(step, state, batches)
        return new_state, measures | {
            "accuracy": jnp.sum(is_correct).astype(jnp.float32)
            / jnp.float32(config.examples_per_task),
            "loss": jnp.mean(losses),
        } | task_measures(learner, state, new_state)

    return Problem(
        learner=learner,
        data=data,
        run_task=run_task,
        updates_per_task=updates_per_task,
        examples_per_task=config.examples_per_task,
    )


if __name__ == "__main__":
    command_line.run("permuted_mnist", make_problem)

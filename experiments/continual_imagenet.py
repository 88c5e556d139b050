"""Continual ImageNet: distinguishing pairs of image classes, one pair after another.

    python -m experiments.continual_imagenet --config=configs/imagenet.py

Each task trains the network on images of two classes for several epochs, and tests it
on other images of these classes. Between tasks, only the head is reset, to 0.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments.learning.checks import ConfigError, check_choice, check_positive
from experiments.learning.learner import (
    LearnerState,
    clear_head,
    compiled_method,
    make_learner,
)
from experiments.learning.measures import layer_measures, task_measures
from experiments.learning.methods import METHODS
from experiments.learning.networks import make_conv_net
from experiments.learning.probes import check_probes, plasticity_of_update, probe
from experiments.learning.problem import Problem
from experiments.run import command_line
from experiments.streams.class_pairs import draw_orders, make_stream


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: a config as in `configs/imagenet.py`.

    Returns:
      The problem. Its metrics per task are `accuracy` (fraction, on the test images
      after the last epoch); with `test_every_epoch`, also `accuracy_by_epoch`, after
      each epoch; `loss` (cross-entropy in nats, before each update); and, per layer,
      `layer_measures` on the first images of the new task, before it and with the old
      head, and `task_measures`; and what `probe` measures on these images, with the new
      head where it is not per layer, and `plasticity_of_update` averages over the task.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("rank_method", config.rank_method, metrics.METHODS)
    check_positive(config, "num_epochs", "batch_size")
    stream = make_stream(config)
    num_images = 2 * config.train_per_class
    _check_images(config, num_images)
    check_probes(config, "the training images of a task", num_images)
    network = make_conv_net(config, stream.image_shape, 2)
    num_updates = config.num_epochs * (num_images // config.batch_size)
    # A method acts on the end of a task after one additional update, so that the last
    # epoch can be tested first.
    sees_tasks = config.method in METHODS and compiled_method(config).sees_tasks
    learner = make_learner(
        config,
        network,
        stream.image_shape,
        updates_per_task=num_updates + sees_tasks,
    )

    def scale(images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32) / jnp.float32(255)
        return images - jnp.broadcast_to(stream.mean_image, images.shape)

    def run_task(
        hyperparameters: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: Any,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        with jax.named_scope("stream"):
            pair = stream.draw_pair(lane_key, task, data)
        train_images, train_labels = _flatten(pair.train)
        test_images, test_labels = _flatten(pair.test)

        @jax.named_scope("stream")
        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            return scale(train_images[indices]), train_labels[indices]

        @jax.named_scope("measures")
        def test_accuracy(state: LearnerState) -> jax.Array:
            outputs = learner.predict(state, scale(test_images))
            return jnp.mean(jnp.argmax(outputs, axis=-1) == test_labels)

        def step(
            state: LearnerState,
            indices: jax.Array,
            acts: bool | None = False if sees_tasks else None,
        ) -> tuple[LearnerState, dict[str, jax.Array]]:
            inputs, labels = read(indices)
            new_state, _, loss = learner.step(
                hyperparameters, state, inputs, labels, acts
            )
            with jax.named_scope("measures"):
                arguments = config, learner, hyperparameters, state, new_state
                plasticity = plasticity_of_update(*arguments, inputs, labels, loss)
            return new_state, {"loss": loss} | plasticity

        def start(state: LearnerState) -> LearnerState:
            return clear_head(
                state, with_optimizer_state=config.reset_head_optimizer_state
            )

        def run_epoch(state: LearnerState, order: jax.Array) -> Any:
            state, measured = lax.scan(
                step, state, order.reshape(-1, config.batch_size)
            )
            measured = jax.tree.map(jnp.mean, measured)
            if config.test_every_epoch:
                measured["accuracy_by_epoch"] = test_accuracy(state)
            return state, measured

        orders = draw_orders(lane_key, task, config.num_epochs, num_images)
        first = orders[0]
        with jax.named_scope("measures"):
            measures = layer_measures(
                config,
                learner,
                hyperparameters,
                state,
                *read(first[: config.measured_examples]),
                task,
            )
            if config.probe_every:
                examples = read(first[: config.probe_examples])
                arguments = config, learner, hyperparameters, lane_key, state
                measures |= probe(*arguments, *examples, task, start)
        state = start(state)
        trained, by_epoch = lax.scan(run_epoch, state, orders)
        measures |= {
            name: values if name.endswith("_by_epoch") else jnp.mean(values)
            for name, values in by_epoch.items()
        }
        measures["accuracy"] = test_accuracy(trained)
        measures |= task_measures(learner, state, trained)
        if sees_tasks:
            trained, _ = step(trained, first[: config.batch_size], acts=True)
        return trained, measures

    return Problem(
        learner=learner,
        data=stream.data,
        run_task=run_task,
        updates_per_task=num_updates + sees_tasks,
        examples_per_task=config.num_epochs * num_images,
    )


def _flatten(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Joins the images [2, N, ...] of both classes: [2 N, ...] and labels [2 N]."""
    labels = jnp.repeat(jnp.arange(2), images.shape[1])
    return images.reshape(-1, *images.shape[2:]), labels


def _check_images(config: Any, num_images: int) -> None:
    """Raises ConfigError unless batches and measured examples fit an epoch's images."""
    if num_images % config.batch_size:
        raise ConfigError(
            "config.batch_size must divide the training images of a task, 2 x "
            f"config.train_per_class = {num_images}, got {config.batch_size}."
        )
    if not 1 <= config.measured_examples <= num_images:
        raise ConfigError(
            "config.measured_examples must be from 1 to the training images of a task, "
            f"2 x config.train_per_class = {num_images}, got "
            f"{config.measured_examples}."
        )


if __name__ == "__main__":
    command_line.run("continual_imagenet", make_problem)

"""Online Permuted MNIST: a stream of images whose pixels are permuted anew per task.

    python -m experiments.permuted_mnist --config=configs/pmnist.py

Each task draws a permutation of the pixels and shows images one at a time, in random
order, for one update each. Nothing is reset or signaled at a change of task.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments import datasets, program
from experiments.configuration import check_choice
from experiments.learners import STREAM, LearnerState, make_learner, make_mlp
from experiments.measures import layer_measures, mean_weight_magnitude
from experiments.problem import Problem


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: as in `configs/pmnist.py`.

    Returns:
      The problem; its metrics per task are online `accuracy` (fraction), `loss`
      (cross-entropy in nats), both of predictions before the update, and per layer
      `dead_units` (fraction), `effective_rank`, `stable_rank` (on images of the new
      task, before it) and `weight_magnitude` (mean of before and after the task).

    Raises:
      ValueError: a field out of range, or the data set cannot be loaded.
    """
    check_choice("sampling", config.sampling, SAMPLING)
    check_choice("rank_method", config.rank_method, metrics.METHODS)
    if not 1 <= config.measured_examples <= config.examples_per_task:
        raise ValueError(
            "config.measured_examples must be from 1 to config.examples_per_task "
            f"({config.examples_per_task}), got {config.measured_examples}."
        )
    dataset = datasets.load(config.dataset, config.data_dir)
    num_images = len(dataset.images)
    num_pixels = dataset.images[0].size
    network = make_mlp(config, dataset.num_classes)
    learner = make_learner(config, network, (num_pixels,))
    data = {
        "images": dataset.images.reshape(num_images, num_pixels),
        "labels": dataset.labels,
    }

    def run_task(
        settings: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: dict[str, jax.Array],
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        pixels, order = draw_task(config, lane_key, task, num_pixels, num_images)

        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            images = data["images"][indices][..., pixels]
            return images / jnp.float32(dataset.max_value), data["labels"][indices]

        measures = layer_measures(
            config,
            learner,
            state.params,
            read(order[: config.measured_examples])[0],
            task,
        )

        def step(
            state: LearnerState, index: jax.Array
        ) -> tuple[LearnerState, tuple[jax.Array, jax.Array]]:
            image, label = read(index[None])
            state, outputs, loss = learner.step(settings, state, image, label)
            return state, (jnp.argmax(outputs[0]) == label[0], loss)

        new_state, (is_correct, losses) = lax.scan(step, state, order)
        return new_state, measures | {
            "accuracy": jnp.sum(is_correct) / jnp.float32(config.examples_per_task),
            "loss": jnp.mean(losses),
            "weight_magnitude": mean_weight_magnitude(
                learner, state.params, new_state.params
            ),
        }

    return Problem(
        learner=learner,
        data=data,
        run_task=run_task,
        steps_per_task=config.examples_per_task,
        examples_per_task=config.examples_per_task,
    )


def draw_task(
    config: Any, lane_key: jax.Array, task: jax.Array, num_pixels: int, num_images: int
) -> tuple[jax.Array, jax.Array]:
    """Draws a task of a lane.

    Args:
      config: `sampling` and `examples_per_task`.
      lane_key: the lane's key; the same for every method.
      task: its number, int32 scalar.
      num_pixels: of an image.
      num_images: of the data set.

    Returns:
      The permutation of the pixels, int32 `[num_pixels]`, and the indices of the images
      in the order of showing, int32 `[examples_per_task]`.
    """
    key = jax.random.fold_in(jax.random.fold_in(lane_key, STREAM), task)
    pixel_key, order_key = jax.random.split(key)
    pixels = jax.random.permutation(pixel_key, num_pixels)
    draw_order = SAMPLING[config.sampling]
    return pixels, draw_order(order_key, num_images, config.examples_per_task)


def _without_replacement(key: jax.Array, num_images: int, number: int) -> jax.Array:
    """Shuffles all images, as often as needed: every image once, before any twice."""
    num_passes = -(-number // num_images)
    keys = jax.random.split(key, num_passes)
    passes = jax.vmap(lambda key: jax.random.permutation(key, num_images))(keys)
    return passes.reshape(-1)[:number]


def _with_replacement(key: jax.Array, num_images: int, number: int) -> jax.Array:
    return jax.random.randint(key, (number,), 0, num_images)


SAMPLING = {
    "without_replacement": _without_replacement,
    "with_replacement": _with_replacement,
}


if __name__ == "__main__":
    program.run("permuted_mnist", make_problem)

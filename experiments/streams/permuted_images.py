"""The stream of Online Permuted MNIST: shuffled images with permuted pixels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import check_choice
from experiments.learning.stream_problem import Deferred
from experiments.streams import datasets
from experiments.streams.sampling import SAMPLING
from experiments.streams.task_changes import (
    check_changes,
    draw_permutation,
    is_of_new_task,
    number_to_change,
    task_and_previous,
)


class ImageStream(NamedTuple):
    """The tasks of a config.

    Attributes:
      sample: `(key, task, data) -> Deferred`; its inputs are float32 from 0 to 1.
      data: `images`, uint8 `[images, num_pixels]`, and `labels`, int32 `[images]`.
      num_pixels: number of pixels of an image.
      num_classes: number of classes of the labels.
    """

    sample: Callable[[jax.Array, jax.Array, Any], Deferred]
    data: dict[str, np.ndarray]
    num_pixels: int
    num_classes: int


def make_stream(config: Any) -> ImageStream:
    """Loads the images of a config.

    Args:
      config: a config with `dataset`, `data_dir`, `sampling`, `examples_per_task`, and
        the fields of `task_changes`.

    Returns:
      The stream.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("sampling", config.sampling, SAMPLING)
    check_changes(config)
    dataset = datasets.load(config.dataset, config.data_dir)
    num_images, num_pixels = len(dataset.images), dataset.images[0].size
    number_to_change(config, "pixels", num_pixels, least=2)

    def sample(key: jax.Array, task: jax.Array, data: dict[str, jax.Array]) -> Deferred:
        task, previous = task_and_previous(config, task)
        pixels, order = draw_task(config, key, task, num_pixels, num_images)

        def scaled(
            images: jax.Array, indices: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            images = images.astype(jnp.float32) / jnp.float32(dataset.max_value)
            return images, data["labels"][indices]

        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            return scaled(data["images"][indices][..., pixels], indices)

        if not config.transition:
            return Deferred(order, read)
        old_pixels, _ = draw_task(config, key, previous, num_pixels, num_images)

        def read_either(items: Any) -> tuple[jax.Array, jax.Array]:
            indices, is_new = items
            chosen = jnp.where(is_new[:, None], pixels[None], old_pixels[None])
            return scaled(data["images"][indices[:, None], chosen], indices)

        return Deferred((order, jnp.asarray(is_of_new_task(config))), read_either)

    data = {
        "images": dataset.images.reshape(num_images, num_pixels),
        "labels": dataset.labels,
    }
    return ImageStream(sample, data, num_pixels, dataset.num_classes)


def draw_task(
    config: Any, key: jax.Array, task: jax.Array, num_pixels: int, num_images: int
) -> tuple[jax.Array, jax.Array]:
    """Draws a task of a lane.

    Args:
      config: a config with `sampling`, `examples_per_task` and `change_fraction`.
      key: key of the lane's stream, the same for every method and task.
      task: number of the task, int32 scalar.
      num_pixels: number of pixels of an image.
      num_images: number of images in the data set.

    Returns:
      The permutation of the pixels, int32 `[num_pixels]`, and the indices of the images
      in the order in which they are presented, int32 `[examples_per_task]`.
    """
    num_changed = number_to_change(config, "pixels", num_pixels, least=2)

    def keys_of(task: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(jax.random.split(jax.random.fold_in(key, task)))

    pixels = draw_permutation(
        lambda task: keys_of(task)[0], task, num_pixels, num_changed
    )
    draw_order = SAMPLING[config.sampling]
    return pixels, draw_order(keys_of(task)[1], num_images, config.examples_per_task)

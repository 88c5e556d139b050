"""The stream of Online Permuted MNIST: shuffled images with permuted pixels."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import check_choice
from experiments.learning.stream_problem import Deferred
from experiments.streams import datasets


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
      config: a config with `dataset`, `data_dir`, `sampling` and `examples_per_task`.

    Returns:
      The stream.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("sampling", config.sampling, SAMPLING)
    dataset = datasets.load(config.dataset, config.data_dir)
    num_images, num_pixels = len(dataset.images), dataset.images[0].size

    def sample(key: jax.Array, task: jax.Array, data: dict[str, jax.Array]) -> Deferred:
        pixels, order = draw_task(config, key, task, num_pixels, num_images)

        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            images = data["images"][indices][..., pixels]
            images = images.astype(jnp.float32) / jnp.float32(dataset.max_value)
            return images, data["labels"][indices]

        return Deferred(order, read)

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
      config: a config with `sampling` and `examples_per_task`.
      key: key of the lane's stream, the same for every method and task.
      task: number of the task, int32 scalar.
      num_pixels: number of pixels of an image.
      num_images: number of images in the data set.

    Returns:
      The permutation of the pixels, int32 `[num_pixels]`, and the indices of the images
      in the order in which they are presented, int32 `[examples_per_task]`.
    """
    pixel_key, order_key = jax.random.split(jax.random.fold_in(key, task))
    pixels = jax.random.permutation(pixel_key, num_pixels)
    draw_order = SAMPLING[config.sampling]
    return pixels, draw_order(order_key, num_images, config.examples_per_task)


def _without_replacement(key: jax.Array, num_images: int, number: int) -> jax.Array:
    """Shuffles all images as often as needed: none repeats before all have appeared."""
    num_passes = -(-number // num_images)
    keys = jax.random.split(key, num_passes)
    passes = jax.vmap(lambda key: jax.random.permutation(key, num_images))(keys)
    return passes.reshape(-1)[:number]


def _with_replacement(key: jax.Array, num_images: int, number: int) -> jax.Array:
    return jax.random.randint(key, (number,), 0, num_images, jnp.int32)


SAMPLING: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        "without_replacement": _without_replacement,
        "with_replacement": _with_replacement,
    }
)

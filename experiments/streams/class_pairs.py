"""The stream of Continual ImageNet: one pair of classes to distinguish after another.

Shapes: N training and M test images per class, H x W pixels, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import ConfigError, check_choice, check_positive
from experiments.learning.keys import STREAM, make_key
from experiments.streams import class_images, textures

TEXTURES = "textures"
DATASETS = (TEXTURES, *class_images.LOADERS)
"""The values that `config.dataset` can have."""

# Purposes of the keys derived from a stream's key.
_CLASS_ORDER, _NEW_CLASSES, _IMAGE_ORDER = range(3)
_TEXTURES_KEY = 0  # Seed of the classes that all lanes share.


class Pair(NamedTuple):
    """The images of a task; those of the first class have label 0."""

    train: jax.Array  # uint8 [2, N, H, W, C]
    test: jax.Array  # uint8 [2, M, H, W, C]


class PairStream(NamedTuple):
    """The tasks of a config.

    Attributes:
      data: pytree of NumPy arrays that all lanes share.
      image_shape: (H, W, C).
      mean_image: mean image of the classes used, over 255, float32, broadcasts to
        [H, W, C].
      draw_pair: `(lane_key, task, data) -> Pair`.
    """

    data: Any
    image_shape: tuple[int, ...]
    mean_image: np.ndarray
    draw_pair: Callable[[jax.Array, jax.Array, Any], Pair]


def make_stream(config: Any) -> PairStream:
    """Loads the classes of a config, or prepares to draw them.

    Each seed has a random order of the classes and takes them in pairs. After the last
    pair the order repeats, so the pairs recur. If the number of classes is odd, the
    last one in the order is not used. Only `textures` can avoid recurrence: if
    `config.num_classes` is 0, each task has two new classes, which depend on the seed.

    Args:
      config: a config with `dataset`, `data_dir`, `num_classes`, `train_per_class`,
        `test_per_class` and `texture_pixels`.

    Returns:
      The stream.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("dataset", config.dataset, DATASETS)
    check_positive(config, "train_per_class", "test_per_class", "texture_pixels")
    if config.num_classes < 0 or config.num_classes == 1:
        raise ConfigError(
            "config.num_classes must be at least 2, or 0 for all classes of a data set "
            f"or for new textures in each task, got {config.num_classes}."
        )
    if config.dataset == TEXTURES:
        return _texture_stream(config)
    return _image_stream(config)


def draw_classes(lane_key: jax.Array, task: jax.Array, num_classes: int) -> jax.Array:
    """Draws the two classes of a task.

    Args:
      lane_key: the lane's key, the same for every method.
      task: number of the task, int32 scalar.
      num_classes: number of classes to choose from, at least 2.

    Returns:
      int32 [2].
    """
    key = jax.random.fold_in(_stream_key(lane_key), _CLASS_ORDER)
    order = jax.random.permutation(key, num_classes)
    return lax.dynamic_slice(order, [2 * (task % (num_classes // 2))], [2])


def draw_orders(
    lane_key: jax.Array, task: jax.Array, num_epochs: int, num_images: int
) -> jax.Array:
    """Draws the order of a task's images in each epoch.

    Returns:
      int32 [num_epochs, num_images]. With more epochs, the first ones stay the same.
    """
    key = jax.random.fold_in(_stream_key(lane_key), _IMAGE_ORDER)
    key = jax.random.fold_in(key, task)
    return jax.vmap(
        lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
    )(jnp.arange(num_epochs))


def _stream_key(lane_key: jax.Array) -> jax.Array:
    return jax.random.fold_in(lane_key, STREAM)


def _image_stream(config: Any) -> PairStream:
    images = class_images.load(
        config.dataset,
        config.data_dir,
        config.num_classes,
        config.train_per_class,
        config.test_per_class,
    )

    def draw_pair(lane_key: jax.Array, task: jax.Array, data: Any) -> Pair:
        classes = draw_classes(lane_key, task, len(images.train))
        return Pair(data.train[classes], data.test[classes])

    return PairStream(images, images.train.shape[2:], images.mean_image(), draw_pair)


def _texture_stream(config: Any) -> PairStream:
    """Draws the images of each task when it starts; none are stored."""
    num_train, num_test = config.train_per_class, config.test_per_class
    num_pixels = config.texture_pixels

    def draw_class(key: jax.Array) -> Pair:
        texture_key, image_key = jax.random.split(key)
        images = textures.draw_images(
            textures.draw_texture(texture_key),
            image_key,
            num_train + num_test,
            num_pixels,
        )
        return Pair(images[:num_train], images[num_train:])

    def draw_pair(lane_key: jax.Array, task: jax.Array, data: Any) -> Pair:
        del data
        if config.num_classes:
            classes_key = make_key(_TEXTURES_KEY)
            classes = draw_classes(lane_key, task, config.num_classes)
        else:
            classes_key = jax.random.fold_in(_stream_key(lane_key), _NEW_CLASSES)
            classes = 2 * task + jnp.arange(2)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(classes_key, classes)
        return jax.vmap(draw_class)(keys)

    mean_pixel = np.float32(textures.MEAN_PIXEL / 255)
    return PairStream({}, (num_pixels, num_pixels, 3), mean_pixel, draw_pair)

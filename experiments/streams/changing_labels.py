"""The stream of Changing Labels: the same images, whose labels change with the task.

Shapes: N training images and M test images of a seed, C classes, T examples of a task.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import ConfigError, check_choice, check_positive
from experiments.learning.keys import make_key
from experiments.learning.stream_problem import Deferred, Sample
from experiments.streams import datasets, textures
from experiments.streams.datasets import ImageDataset
from experiments.streams.sampling import SAMPLING
from experiments.streams.task_changes import (
    check_changes,
    draw_permutation,
    is_of_new_task,
    number_to_change,
    task_and_previous,
)

TEXTURES = "textures"
DATASETS = (TEXTURES, *datasets.LOADERS)
"""The values that `config.dataset` can have."""
LABELS = ("random", "permuted")
"""The values that `config.labels` can have."""

# Purposes of the keys derived from a stream's key.
_IMAGES, _LABELS, _ORDER = range(3)
_TEXTURES_KEY = 0  # Seed of the textures that all lanes share.


class LabelStream(NamedTuple):
    """The tasks of a config.

    Attributes:
      sample: `(key, task, data) -> Deferred`, the T examples of a task; its inputs are
        float32 from 0 to 1.
      evaluations: the examples to evaluate after a task, with its labels: for
        `train_accuracy` the training images, or those that the task has shown if it
        has fewer than N examples; for `test_accuracy` the test images, if there are
        any.
      data: `images`, uint8 `[images, *input_shape]`, and `labels`, int32 `[images]`.
      input_shape: `(H, W, channels)` if the config has convolutions, otherwise the
        number of pixels.
      num_classes: C.
    """

    sample: Sample
    evaluations: dict[str, Sample]
    data: dict[str, np.ndarray]
    input_shape: tuple[int, ...]
    num_classes: int


def make_stream(config: Any) -> LabelStream:
    """Loads the images of a config.

    Each seed chooses its own training and test images from the data set at random, and
    keeps them in all tasks. Labels are

    * `random`: each image has a label of its own, independent of its class, which the
      network can only memorize. With a `change_fraction`, images take turns in being
      given new labels, so that the labels of any task can be drawn at once.
    * `permuted`: the classes exchange their names.

    Args:
      config: a config with `labels`, `dataset`, `data_dir`, `num_images`,
        `num_test_images`, `texture_classes`, `texture_pixels`, `conv_channels`,
        `sampling`, `examples_per_task` and the fields of `task_changes`.

    Returns:
      The stream.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("labels", config.labels, LABELS)
    check_choice("dataset", config.dataset, DATASETS)
    check_choice("sampling", config.sampling, SAMPLING)
    check_changes(config)
    _check_numbers(config)
    dataset = _load(config)
    num_classes = dataset.num_classes
    num_images = _number_of_images(config, len(dataset.images))
    num_changed = _number_to_change(config, num_images, num_classes)
    input_shape = dataset.images.shape[1:]
    if not config.conv_channels:
        input_shape = (dataset.images[0].size,)

    def choose_images(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(key, _IMAGES)
        images = jax.random.permutation(key, len(dataset.images))
        return images[:num_images], images[num_images:][: config.num_test_images]

    def labels_of(key: jax.Array, task: jax.Array, images: Any, data: Any) -> jax.Array:
        if config.labels == "random":
            return draw_labels(key, task, num_images, num_classes, num_changed)
        names = draw_names(key, task, num_classes, num_changed)
        return names[data["labels"][images]]

    def draw_order(key: jax.Array, task: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), task)
        return SAMPLING[config.sampling](key, num_images, config.examples_per_task)

    def labeled(images: jax.Array, labels: jax.Array, data: Any) -> Deferred:
        def read(items: Any) -> tuple[jax.Array, jax.Array]:
            images, labels = items
            pixels = data["images"][images].astype(jnp.float32)
            return pixels / jnp.float32(dataset.max_value), labels

        return Deferred((images, labels), read)

    def sample(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        task, previous = task_and_previous(config, task)
        images, _ = choose_images(key)
        order = draw_order(key, task)
        labels = labels_of(key, task, images, data)[order]
        if config.transition:
            old_labels = labels_of(key, previous, images, data)[order]
            labels = jnp.where(is_of_new_task(config), labels, old_labels)
        return labeled(images[order], labels, data)

    def training_images(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        task, _ = task_and_previous(config, task)
        images, _ = choose_images(key)
        labels = labels_of(key, task, images, data)
        if config.examples_per_task < num_images:
            shown = draw_order(key, task)
            images, labels = images[shown], labels[shown]
        return labeled(images, labels, data)

    def test_images(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        task, _ = task_and_previous(config, task)
        _, images = choose_images(key)
        return labeled(images, labels_of(key, task, images, data), data)

    evaluations: dict[str, Sample] = {"train_accuracy": training_images}
    if config.num_test_images:
        evaluations["test_accuracy"] = test_images
    data = {
        "images": dataset.images.reshape(-1, *input_shape),
        "labels": dataset.labels,
    }
    return LabelStream(sample, evaluations, data, input_shape, num_classes)


def draw_labels(
    key: jax.Array, task: jax.Array, num_images: int, num_classes: int, num_changed: int
) -> jax.Array:
    """Draws the random labels of a task.

    With each task, the images that are next in turn are given new labels, which may be
    the old ones by chance.

    Args:
      key: key of the lane's stream, the same for every method and task.
      task: number of the task, int32 scalar.
      num_images: N.
      num_classes: C.
      num_changed: number of images with a new label in each task, up to N.

    Returns:
      int32 `[N]`, uniform from 0 to C - 1.
    """
    key = jax.random.fold_in(key, _LABELS)

    def draw(turn: jax.Array) -> jax.Array:
        key_of_turn = jax.random.fold_in(key, turn)
        return jax.random.randint(key_of_turn, (num_images,), 0, num_classes, jnp.int32)

    if num_changed == num_images:
        return draw(task)
    turns, more = jnp.divmod(task * num_changed, num_images)
    has_one_more = jnp.arange(num_images) < more
    return jnp.where(has_one_more, draw(turns + 1), draw(turns))


def draw_names(
    key: jax.Array, task: jax.Array, num_classes: int, num_changed: int
) -> jax.Array:
    """Draws the label that each class has in a task.

    Args:
      key: key of the lane's stream, the same for every method and task.
      task: number of the task, int32 scalar.
      num_classes: C.
      num_changed: number of classes that exchange their names with each task.

    Returns:
      A permutation, int32 `[C]`; see `draw_permutation`.
    """
    key = jax.random.fold_in(key, _LABELS)
    return draw_permutation(
        lambda task: jax.random.fold_in(key, task), task, num_classes, num_changed
    )


def _check_numbers(config: Any) -> None:
    check_positive(config, "texture_classes", "texture_pixels")
    for name in ("num_images", "num_test_images"):
        if config[name] < 0:
            raise ConfigError(f"config.{name} must be at least 0, got {config[name]}.")
    if config.labels == "random" and config.num_test_images:
        raise ConfigError(
            "config.num_test_images must be 0 with config.labels 'random', which "
            f"cannot be predicted for other images; got {config.num_test_images}."
        )
    if config.dataset == TEXTURES and not config.num_images:
        raise ConfigError(
            "config.num_images must be at least 1 with config.dataset 'textures', "
            "which has any number of images."
        )


def _number_of_images(config: Any, available: int) -> int:
    """Returns N.

    Raises:
      ConfigError: the data set has too few images.
    """
    num_images = config.num_images or available - config.num_test_images
    if num_images < 1 or num_images + config.num_test_images > available:
        raise ConfigError(
            f"config.dataset {config.dataset!r} has {available} images, but "
            f"config.num_images is {config.num_images} and config.num_test_images "
            f"{config.num_test_images}: lower them."
        )
    return num_images


def _number_to_change(config: Any, num_images: int, num_classes: int) -> int:
    """Returns the number of images, or classes, whose labels change with each task."""
    if config.labels == "random":
        return number_to_change(config, "images", num_images, least=1)
    return number_to_change(config, "classes", num_classes, least=2)


def _load(config: Any) -> ImageDataset:
    if config.dataset != TEXTURES:
        return datasets.load(config.dataset, config.data_dir)
    number = config.num_images + config.num_test_images
    return _draw_textures(
        config.texture_classes,
        -(-number // config.texture_classes),
        config.texture_pixels,
    )


@functools.lru_cache(maxsize=1)
def _draw_textures(num_classes: int, per_class: int, num_pixels: int) -> ImageDataset:
    """Draws the same number of images of each class."""

    @jax.jit
    def draw_class(key: jax.Array) -> jax.Array:
        texture_key, image_key = jax.random.split(key)
        texture = textures.draw_texture(texture_key)
        return textures.draw_images(texture, image_key, per_class, num_pixels)

    key = make_key(_TEXTURES_KEY)
    images = [draw_class(jax.random.fold_in(key, one)) for one in range(num_classes)]
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    images = np.concatenate(images)
    return ImageDataset(TEXTURES, images, labels, num_classes, max_value=255.0)

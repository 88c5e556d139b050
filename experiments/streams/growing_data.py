"""The stream of Warm Start: a growing part of a data set, in phases of several tasks.

Shapes: N training images, T examples of a task.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import ConfigError, check_choice
from experiments.learning.stream_problem import Deferred, Sample
from experiments.streams import datasets

# Purposes of the keys derived from a stream's key.
_PART, _ORDER = range(2)
_DIGITS = "digits"
_DIGITS_TRAIN = 1200  # Of 1,797; the others are for testing.


class GrowingStream(NamedTuple):
    """The tasks of a config.

    Attributes:
      sample: `(key, task, data) -> Deferred`, the T examples of a task; its inputs are
        float32 from 0 to 1.
      evaluations: the examples to evaluate after a task: for `accuracy` the test
        images; for `train_accuracy` the first examples of the task, as many as there
        are test images or T.
      data: `images`, uint8 `[N, *input_shape]`, and `labels`, int32 `[N]`; likewise
        `test_images` and `test_labels`.
      input_shape: `(height, width, channels)` if the config has convolutions, otherwise
        `(pixels,)`.
      num_classes: number of classes of the labels.
    """

    sample: Sample
    evaluations: dict[str, Sample]
    data: dict[str, np.ndarray]
    input_shape: tuple[int, ...]
    num_classes: int


def make_stream(config: Any) -> GrowingStream:
    """Loads the images of a config.

    Of the digits, which have no test images of their own, the first 1,200 in the order
    of scikit-learn are training images, and the last 597 test images.

    Args:
      config: a config with `dataset`, `data_dir`, `shares`, `phase_tasks`,
        `conv_channels` and `examples_per_task`.

    Returns:
      The stream.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    check_choice("dataset", config.dataset, datasets.LOADERS)
    train, test = _load(config)
    num_images = len(train.images)
    number_in_phase(config, num_images)
    input_shape = train.images.shape[1:]
    if not config.conv_channels:
        input_shape = (train.images[0].size,)

    def scaled(images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32) / jnp.float32(train.max_value)

    def sample(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        def read(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            return scaled(data["images"][indices]), data["labels"][indices]

        return Deferred(draw_order(config, key, task, num_images), read)

    def seen_images(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        order, read = sample(key, task, data)
        return Deferred(order[: len(test.images)], read)

    def test_images(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        del key, task
        pairs = data["test_images"], data["test_labels"]
        return Deferred(pairs, lambda pair: (scaled(pair[0]), pair[1]))

    data = {
        "images": train.images.reshape(-1, *input_shape),
        "labels": train.labels,
        "test_images": test.images.reshape(-1, *input_shape),
        "test_labels": test.labels,
    }
    evaluations = {"accuracy": test_images, "train_accuracy": seen_images}
    return GrowingStream(sample, evaluations, data, input_shape, train.num_classes)


def phase_starts(config: Any) -> np.ndarray:
    """Returns the first task of each phase, int32 [phases].

    Raises:
      ConfigError: the lengths of the phases are out of range.
    """
    lengths = tuple(config.phase_tasks)
    if len(lengths) != len(config.shares) - 1 or min((*lengths, 1)) < 1:
        raise ConfigError(
            "config.phase_tasks must have the number of tasks, at least 1, of each "
            f"phase but the last, {len(config.shares) - 1} numbers for "
            f"config.shares {tuple(config.shares)}, got {lengths}."
        )
    return np.cumsum([0, *lengths], dtype=np.int32)


def number_in_phase(config: Any, num_images: int) -> np.ndarray:
    """Returns the number of training images in each phase, int32 [phases].

    Args:
      config: a config with `shares`.
      num_images: N.

    Raises:
      ConfigError: the shares are out of range or fall, or one of them is less than an
        image.
    """
    shares = np.asarray(config.shares, float)
    numbers = np.rint(shares * num_images).astype(np.int32)
    is_in_range = shares.size and numbers.min() >= 1 and shares.max() <= 1
    if not is_in_range or (np.diff(shares) < 0).any():
        raise ConfigError(
            "config.shares must be fractions of the training images, above 0 and up to "
            "1, one for each phase and none below the one before, got "
            f"{tuple(config.shares)}."
        )
    return numbers


def draw_order(
    config: Any, key: jax.Array, task: jax.Array, num_images: int
) -> jax.Array:
    """Draws the order in which a task presents the images of its phase.

    All images of the phase are shuffled as often as needed; none repeats before all
    have appeared. Each seed has its own random order of all images, whose beginning is
    the part of a phase, so that later parts contain earlier ones.

    Args:
      config: a config with `shares`, `phase_tasks` and `examples_per_task`.
      key: key of the lane's stream, the same for every method and task.
      task: number of the task, int32 scalar.
      num_images: N.

    Returns:
      Indices of images, int32 [T].
    """
    phase = jnp.sum(task >= phase_starts(config)) - 1
    number = jnp.asarray(number_in_phase(config, num_images))[phase]
    all_images = jax.random.permutation(jax.random.fold_in(key, _PART), num_images)
    first_key, rest_key = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, _ORDER), task)
    )
    # The size of the part is traced, so both shuffles sort random numbers. The first
    # one decides which images the last, incomplete pass has.
    place = jnp.arange(num_images, dtype=jnp.int32)
    _, _, part = lax.sort(
        (place >= number, jax.random.bits(first_key, (num_images,)), all_images),
        num_keys=2,
    )
    place = jnp.arange(config.examples_per_task, dtype=jnp.int32)
    bits = jax.random.bits(rest_key, place.shape)
    _, _, order = lax.sort((place // number, bits, part[place % number]), num_keys=2)
    return order


def _load(config: Any) -> tuple[datasets.ImageDataset, datasets.ImageDataset]:
    """Loads the training and test images."""
    train = datasets.load(config.dataset, config.data_dir)
    if config.dataset != _DIGITS:
        return train, datasets.load(config.dataset, config.data_dir, "test")
    parts = slice(_DIGITS_TRAIN), slice(_DIGITS_TRAIN, None)
    first, last = (
        train._replace(images=train.images[part], labels=train.labels[part])
        for part in parts
    )
    return first, last

"""The stream of Online Permuted MNIST: shuffled images, their pixels permuted."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from experiments.learning.keys import STREAM


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
    return jax.random.randint(key, (number,), 0, num_images, jnp.int32)


SAMPLING: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        "without_replacement": _without_replacement,
        "with_replacement": _with_replacement,
    }
)

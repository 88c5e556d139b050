"""Made-up examples of the shapes that a learner sees, at no cost.

Shapes: K batches, B batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning.problem import Problem

NUM_BATCHES = 4
"""K: a loop goes round so many batches; a power of 2, so that it divides fast."""


class ExampleShape(NamedTuple):
    """What one example is."""

    inputs: tuple[int, ...]
    num_classes: int  # 1 for a number to predict.


def example_shape(config: Any, problem: Problem, params: Any) -> ExampleShape:
    """Finds what a learner's examples are.

    Args:
      config: of the case.
      problem: of the case.
      params: of the learner, or their shapes.
    """
    kernels = [params[layer]["kernel"] for layer in problem.learner.layers]
    num_classes = kernels[-1].shape[-1]
    if "conv_channels" not in config:
        return ExampleShape(kernels[0].shape[:1], num_classes)
    images = getattr(problem.data, "train", None)
    if images is not None:
        return ExampleShape(images.shape[2:], num_classes)
    pixels = config.texture_pixels
    return ExampleShape((pixels, pixels, 3), num_classes)


def make_batches(
    shape: ExampleShape, batch_size: int, number: int, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Makes batches up, of numbers that are cheap to compute and to compile.

    Args:
      shape: of one example.
      batch_size: B.
      number: K.
      seed: integer scalar; differs from lane to lane.

    Returns:
      Inputs between 0 and 1, `[K, B, ...]`, and int32 labels or float32 targets
      `[K, B]`.
    """
    inputs = scatter((number, batch_size, *shape.inputs), seed) / 2 + 0.5
    if shape.num_classes == 1:
        return inputs, scatter((number, batch_size), seed)
    labels = jnp.arange(number * batch_size, dtype=jnp.int32) % shape.num_classes
    return inputs, labels.reshape(number, batch_size)


def scatter(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """Returns float32 numbers between -1 and 1, without a pattern to a network."""
    index = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.uint32)
    mixed = (index + seed.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B)
    mixed ^= mixed >> 13
    return (mixed.astype(jnp.float32) / 2.0**31 - 1).reshape(shape)

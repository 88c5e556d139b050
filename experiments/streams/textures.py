"""Classes of textures, drawn from a key: any number of them, without a download.

A class is a few gratings, which are waves of colored stripes. An image of the class has
them at random positions and contrasts, plus noise and distractor gratings that differ
in each image. A single pixel reveals almost nothing about the class (only a faint
tint), so a linear model does little better than chance, while a convolutional network
finds the stripes.

Shapes: G gratings per class, N images of P x P pixels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CLASS_GRATINGS = 2
_OTHER_GRATINGS = 4
_CYCLES = (0.08, 0.3)  # Cycles of a grating per pixel.
_CONTRASTS = (0.125, 0.375)  # Contrast of a grating; pixels are from -1 to 1.
_TINT = 0.01  # Standard deviations.
_NOISE = 0.15

MEAN_PIXEL = 127.5
"""The mean of each pixel and channel over all classes."""

# Parameters of a grating: cycles, direction and three colors.
_PER_GRATING = 5


class Texture(NamedTuple):
    """Properties that all images of a class share."""

    gratings: jax.Array  # [G, 5], cycles, direction and amplitudes of the colors.
    tint: jax.Array  # [3], the mean color.


def draw_texture(key: jax.Array) -> Texture:
    """Draws a class."""
    # A single draw, since every draw takes half a second to compile.
    size = _CLASS_GRATINGS * _PER_GRATING + 3
    numbers = jax.random.uniform(key, (size,), jnp.float32)
    gratings = _to_gratings(numbers[:-3].reshape(_CLASS_GRATINGS, _PER_GRATING))
    return Texture(gratings, _TINT * _to_unit_variance(numbers[-3:]))


def draw_images(
    texture: Texture, key: jax.Array, number: int, num_pixels: int
) -> jax.Array:
    """Draws images of a class.

    Args:
      texture: the class.
      key: typed PRNG key.
      number: N.
      num_pixels: P.

    Returns:
      uint8 [N, P, P, 3].
    """
    num_gratings = _CLASS_GRATINGS + _OTHER_GRATINGS
    shapes = (
        *((_OTHER_GRATINGS, _PER_GRATING), (num_gratings,), (num_gratings,)),
        (num_pixels, num_pixels, 3),
    )
    others, phase, contrast, noise = _draw(key, number, shapes)
    ours = jnp.broadcast_to(texture.gratings, (number, *texture.gratings.shape))
    gratings = jnp.concatenate([ours, _to_gratings(others)], axis=1)

    cycles, direction, color = gratings[..., 0], gratings[..., 1], gratings[..., 2:]
    place = jnp.arange(num_pixels, dtype=jnp.float32)
    down = (cycles * jnp.sin(direction))[..., None, None] * place[None, None, :, None]
    across = (cycles * jnp.cos(direction))[..., None, None] * place[None, None, None]
    waves = jnp.sin(2 * math.pi * (down + across + phase[..., None, None]))
    waves *= _between(contrast, _CONTRASTS)[..., None, None]
    light = jnp.einsum("ngyx,ngc->nyxc", waves, color) + texture.tint[None, None, None]
    light += _NOISE * _to_unit_variance(noise)
    return jnp.round(MEAN_PIXEL * (1 + jnp.clip(light, -1, 1))).astype(jnp.uint8)


def _draw(
    key: jax.Array, number: int, shapes: tuple[tuple[int, ...], ...]
) -> list[jax.Array]:
    """Draws numbers from [0, 1): an array `[number, *shape]` for each shape."""
    sizes = [math.prod(shape) for shape in shapes]
    numbers = jax.random.uniform(key, (number, sum(sizes)), jnp.float32)
    ends = [sum(sizes[:index]) for index in range(1, len(sizes))]
    parts = jnp.split(numbers, ends, axis=1)
    return [
        part.reshape(number, *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


def _to_gratings(numbers: jax.Array) -> jax.Array:
    """Turns numbers `[..., 5]` from [0, 1) into gratings of random directions."""
    cycles = _between(numbers[..., :1], _CYCLES)
    direction = math.pi * numbers[..., 1:2]
    color = _to_unit_variance(numbers[..., 2:])
    return jnp.concatenate([cycles, direction, color], axis=-1)


def _between(numbers: jax.Array, ends: tuple[float, float]) -> jax.Array:
    low, high = ends
    return low + (high - low) * numbers


def _to_unit_variance(numbers: jax.Array) -> jax.Array:
    """Scales uniform numbers from [0, 1) to mean 0 and variance 1."""
    return _between(numbers, (-math.sqrt(3), math.sqrt(3)))

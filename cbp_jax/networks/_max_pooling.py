"""Max-pooling by comparisons, which XLA fuses with the surrounding operations.

On a CPU, the gradient of XLA's own windowed reduction is slow: it takes a third of a
training step of the paper's convolutional network.

Shapes: H x W pixels, C channels.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(inputs: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Takes the maximum of each window; windows do not overlap.

    This equals `flax.linen.max_pool(inputs, window, strides=window)`, including its
    gradient: it drops rows and columns that do not fill a window, and the first of
    equal maxima (row by row) gets the gradient. Only reverse-mode differentiation is
    defined.

    Args:
      inputs: `[..., H, W, C]`.
      window: height and width of a window.

    Returns:
      `[..., H // height, W // width, C]`.
    """
    return functools.reduce(jnp.maximum, _entries(inputs, window))


def _forward(inputs: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    return max_pool(inputs, window), inputs


def _backward(
    window: tuple[int, int], inputs: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array]:
    height, width = window
    entries = _entries(inputs, window)
    maximum = functools.reduce(jnp.maximum, entries)
    winner = jnp.full(maximum.shape, len(entries) - 1, jnp.int32)
    for index in reversed(range(len(entries) - 1)):
        winner = jnp.where(entries[index] == maximum, index, winner)

    *batch, rows, columns, channels = maximum.shape
    place = jnp.arange(height * width, dtype=jnp.int32).reshape(
        *(1,) * (len(batch) + 1), height, 1, width, 1
    )
    one_per_window = (*batch, rows, 1, columns, 1, channels)
    gradient = jnp.where(
        winner.reshape(one_per_window) == place, cotangent.reshape(one_per_window), 0
    ).reshape(*batch, rows * height, columns * width, channels)
    left_out = zip(inputs.shape, gradient.shape, strict=True)
    return (jnp.pad(gradient, [(0, whole - used) for whole, used in left_out]),)


max_pool.defvjp(_forward, _backward)


def _entries(inputs: jax.Array, window: tuple[int, int]) -> list[jax.Array]:
    """Returns the entries of all windows row by row, each `[..., rows, columns, C]`."""
    height, width = window
    *batch, pixels_down, pixels_across, channels = inputs.shape
    rows, columns = pixels_down // height, pixels_across // width
    windows = inputs[..., : rows * height, : columns * width, :].reshape(
        *batch, rows, height, columns, width, channels
    )
    return [
        windows[..., row, :, column, :]
        for row in range(height)
        for column in range(width)
    ]

"""Convolution as one matrix product of patches, for CPUs.

On a CPU, XLA runs a convolution on one core, and often has no fast code for its
gradients: those of the paper's network at batch size 100 take about 2 s, and the matrix
products below take 40 ms on two cores. The products use all cores, and their
derivatives, forward or reverse, are again products.

Shapes: B batch, H x W pixels, C channels, O output channels.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from types import MappingProxyType
from typing import Any

import jax
from jax import lax
from jax.lax import ConvGeneralDilatedDimensionNumbers, PrecisionLike
import jax.numpy as jnp
from jax.typing import DTypeLike

from cbp_jax._numbers import check_choice

# With fewer channels than this, building the patches costs more than multiplying them.
_FEW_CHANNELS = 8

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def patches_convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of images, as one matrix product of patches.

    To use it, pass `conv_general_dilated=patches_convolution` to `flax.linen.Conv`. The
    patches need the memory of the images times the size of the kernel (a third of that
    for images with few channels).

    Args:
      lhs: images `[B, H, W, C]`.
      rhs: kernel `[height, width, C, O]`.
      window_strides: strides of height and width.
      padding: "SAME", "VALID", or a pair (before, after) each for height and width.
      lhs_dilation: must be 1 or None.
      rhs_dilation: steps between the pixels that a kernel reads; None for 1.
      dimension_numbers: must be `("NHWC", "HWIO", "NHWC")`.
      feature_group_count: must be 1.
      batch_group_count: must be 1.
      precision: precision of the product.
      preferred_element_type: dtype of the product.

    Returns:
      `[B, new height, new width, O]`.

    Raises:
      ValueError: unsupported layout or option.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    _check(lhs, rhs, dimension_numbers, lhs_dilation)
    if feature_group_count != 1 or batch_group_count != 1:
        raise ValueError(
            f"patches_convolution got feature_group_count={feature_group_count} and "
            f"batch_group_count={batch_group_count}, but supports only 1. Use "
            "jax.lax.conv_general_dilated."
        )
    strides = tuple(window_strides)
    dilation = tuple(rhs_dilation or (1, 1))
    window = tuple(
        step * (size - 1) + 1 for step, size in zip(dilation, rhs.shape, strict=False)
    )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    images = _pad(lhs, padding)

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        patches = _patches(images, kernel.shape[:2], strides, dilation)
        return jnp.matmul(
            patches,
            kernel.reshape(-1, kernel.shape[-1]),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    is_dense = strides == dilation == (1, 1)
    if is_dense and images.shape[-1] < _FEW_CHANNELS and min(rhs.shape[:2]) > 1:
        return _in_squares(convolve, images, rhs)
    return convolve(images, rhs)


CONVOLUTIONS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {"patches": patches_convolution, "xla": lax.conv_general_dilated}
)
"""Ways to compute a convolution; values and gradients are the same."""


def convolution_named(name: str) -> Callable[..., jax.Array]:
    """Returns a function with the arguments of `jax.lax.conv_general_dilated`.

    Args:
      name: a key of `CONVOLUTIONS`, or "auto": "patches" in a program for a CPU, "xla"
        in one for another platform.

    Raises:
      ValueError: unknown name; the message lists the choices.
    """
    check_choice("convolution", name, ("auto", *CONVOLUTIONS))
    return _by_platform if name == "auto" else CONVOLUTIONS[name]


def _by_platform(
    lhs: jax.Array, rhs: jax.Array, *arguments: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, by patches where the program is for a CPU."""

    def convolve(name: str) -> Callable[..., jax.Array]:
        return lambda lhs, rhs: CONVOLUTIONS[name](lhs, rhs, *arguments, **options)

    return lax.platform_dependent(
        lhs, rhs, cpu=convolve("patches"), default=convolve("xla")
    )


def _patches(
    images: jax.Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> jax.Array:
    """Concatenates the input pixels that each output pixel reads.

    Args:
      images: `[B, H, W, C]`.
      sizes: height and width of the kernel.
      strides: strides of height and width.
      dilation: dilation of height and width.

    Returns:
      `[B, new height, new width, kernel height * kernel width * C]`.
    """

    def pixels_at(axis: int, offset: int) -> slice:
        size, step, dilated = sizes[axis], strides[axis], dilation[axis]
        steps = (images.shape[axis + 1] - dilated * (size - 1) - 1) // step
        start = dilated * offset
        return slice(start, start + step * steps + 1, step)

    seen = [
        images[:, pixels_at(0, row), pixels_at(1, column)]
        for row in range(sizes[0])
        for column in range(sizes[1])
    ]
    return jnp.concatenate(seen, axis=-1)


def _in_squares(
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Convolves with stride 1, computing 2 x 2 output pixels at a time.

    Each square of 2 x 2 image pixels becomes one pixel with 4 C channels. The kernel
    becomes a kernel of such squares with 4 O outputs: it contains one copy for each
    pixel of an output square, shifted and padded with zeros. This needs a third of the
    patches and somewhat more multiplications.

    Args:
      convolve: maps images and a kernel to outputs with stride 1.
      images: `[B, H, W, C]`.
      kernel: `[height, width, C, O]`.

    Returns:
      `[B, H - height + 1, W - width + 1, O]`.
    """
    batch, *pixels, channels = images.shape
    sizes = kernel.shape[:2]
    outputs = [whole - size + 1 for whole, size in zip(pixels, sizes, strict=True)]
    output_squares = [math.ceil(number / 2) for number in outputs]
    # Number of squares that a kernel touches, wherever it starts in the first one.
    spans = [math.ceil((size + 1) / 2) for size in sizes]
    squares = [
        number + span - 1 for number, span in zip(output_squares, spans, strict=True)
    ]

    missing = [
        2 * number - whole for number, whole in zip(squares, pixels, strict=True)
    ]
    images = _pad(images, [(0, number) for number in missing])
    images = images.reshape(batch, squares[0], 2, squares[1], 2, channels)
    images = images.swapaxes(2, 3).reshape(batch, *squares, 4 * channels)

    shifted = [
        jnp.pad(
            kernel,
            (
                (down, 2 * spans[0] - sizes[0] - down),
                (right, 2 * spans[1] - sizes[1] - right),
                (0, 0),
                (0, 0),
            ),
        )
        for down in (0, 1)
        for right in (0, 1)
    ]
    kernel = jnp.concatenate(shifted, axis=-1)
    kernel = kernel.reshape(spans[0], 2, spans[1], 2, channels, -1)
    kernel = kernel.swapaxes(1, 2).reshape(*spans, 4 * channels, -1)

    found = convolve(images, kernel)
    found = found.reshape(batch, *output_squares, 2, 2, -1).swapaxes(2, 3)
    found = found.reshape(batch, 2 * output_squares[0], 2 * output_squares[1], -1)
    return found[:, : outputs[0], : outputs[1]]


def _pad(images: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads height and width with zeros, or crops where the padding is negative."""
    (top, bottom), (left, right) = padding
    return lax.pad(
        images,
        jnp.zeros((), images.dtype),
        [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)],
    )


def _check(
    images: jax.Array, kernel: jax.Array, dimension_numbers: Any, lhs_dilation: Any
) -> None:
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"patches_convolution got shapes {images.shape} and {kernel.shape}, "
            "expected images [B, H, W, C] and a kernel [height, width, C, O]."
        )
    layout, given = (
        lax.conv_dimension_numbers(images.shape, kernel.shape, numbers)
        for numbers in (_LAYOUT, dimension_numbers)
    )
    if given != layout:
        raise ValueError(
            f"patches_convolution got dimension_numbers={dimension_numbers!r}, but "
            f"supports only {_LAYOUT}. Use jax.lax.conv_general_dilated."
        )
    if lhs_dilation is not None and any(step != 1 for step in lhs_dilation):
        raise ValueError(
            f"patches_convolution got lhs_dilation={lhs_dilation}, but supports only "
            "1. Use jax.lax.conv_general_dilated."
        )

"""Convolution as patches and one matrix product, for CPUs.

On a CPU XLA runs a convolution on one core, and for its gradients it often finds no
fast code at all: those of the paper's network at batch 100 take about 2 s, where the
products below take 40 ms on two cores. The products use all cores, and JAX
differentiates them into further products, in any mode.

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

# With fewer channels than this the patches cost more to lay out than to multiply.
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

    It takes its arguments, so `flax.linen.Conv(..., conv_general_dilated=
    patches_convolution)` uses it. The patches take as much memory as the images times
    the size of the kernel (a third of that for images of few channels).

    Args:
      lhs: images `[B, H, W, C]`.
      rhs: kernel `[height, width, C, O]`.
      window_strides: of height and width.
      padding: "SAME", "VALID", or a pair (before, after) for height and for width.
      lhs_dilation: must be 1 or None.
      rhs_dilation: steps between the pixels that a kernel reads, None for 1.
      dimension_numbers: as above: `("NHWC", "HWIO", "NHWC")`.
      feature_group_count: must be 1.
      batch_group_count: must be 1.
      precision: of the product.
      preferred_element_type: of the product.

    Returns:
      `[B, new height, new width, O]`.

    Raises:
      ValueError: another layout, or an option that it does not have.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    _check(lhs, rhs, dimension_numbers, lhs_dilation)
    if feature_group_count != 1 or batch_group_count != 1:
        raise ValueError(
            f"patches_convolution has no groups, got {feature_group_count} of features "
            f"and {batch_group_count} of the batch; use jax.lax.conv_general_dilated."
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
"""Ways to compute a convolution, of equal values and gradients."""


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
    """Lays what each output pixel sees side by side.

    Args:
      images: `[B, H, W, C]`.
      sizes: of the kernel, height and width.
      strides: of height and width.
      dilation: of height and width.

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
    """Convolves with stride 1, computing squares of 2 x 2 output pixels at once.

    The images become squares of 2 x 2 pixels with 4 C channels. The kernel becomes one
    of squares with 4 O outputs: it stands there once for each pixel of an output
    square, shifted, with zeros around. That is a third of the patches for some more
    multiplications.

    Args:
      convolve: maps images and a kernel to outputs, with stride 1.
      images: `[B, H, W, C]`.
      kernel: `[height, width, C, O]`.

    Returns:
      `[B, H - height + 1, W - width + 1, O]`.
    """
    batch, *pixels, channels = images.shape
    sizes = kernel.shape[:2]
    outputs = [whole - size + 1 for whole, size in zip(pixels, sizes, strict=True)]
    output_squares = [math.ceil(number / 2) for number in outputs]
    # So many squares a kernel touches, from whichever pixel of the first it starts.
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
            "patches_convolution takes images [B, H, W, C] and a kernel [height, "
            f"width, C, O], got shapes {images.shape} and {kernel.shape}."
        )
    layout, given = (
        lax.conv_dimension_numbers(images.shape, kernel.shape, numbers)
        for numbers in (_LAYOUT, dimension_numbers)
    )
    if given != layout:
        raise ValueError(
            f"patches_convolution has the layout {_LAYOUT} only, got "
            f"dimension_numbers={dimension_numbers!r}."
        )
    if lhs_dilation is not None and any(step != 1 for step in lhs_dilation):
        raise ValueError(
            f"patches_convolution cannot dilate its images, got {lhs_dilation}; use "
            "jax.lax.conv_general_dilated."
        )

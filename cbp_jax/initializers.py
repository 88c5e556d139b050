"""Initial distributions of weights, as `jax.nn.initializers` functions.

An initializer is a function `(key, shape, dtype) -> array` of a typed key, a shape
`[..., fan_out]` whose leading axes make up the fan-in, and a floating-point dtype
(by default float32, or float64 under x64). So `[in, out]` dense kernels and
`[height, width, in, out]` convolution kernels work alike.

Legend for shapes: N units, K replaced units.
"""

from collections.abc import Mapping
import math
from types import MappingProxyType

import jax
from jax.typing import DTypeLike

from cbp_jax._types import Initializer

__all__ = [
    "GAINS",
    "draws_unit_by_unit",
    "kaiming_uniform",
    "uniform_fan_in",
    "unit_by_unit",
]

GAINS: Mapping[str, float] = MappingProxyType(
    {
        "elu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
        "linear": 1.0,
        "relu": math.sqrt(2),
        "sigmoid": 1.0,
        "swish": math.sqrt(2),
        "tanh": 5 / 3,
    }
)
"""Gain of each activation, as the paper sets them; leaky ReLU has slope 0.01."""


def kaiming_uniform(activation: str) -> Initializer:
    """Uniform weights whose spread keeps the scale of the signal after an activation.

    Draws from U(-b, b) with `b = gain * sqrt(3 / fan_in)`: the standard deviation is
    `gain / sqrt(fan_in)`.

    Args:
      activation: the activation after the layer, a key of `GAINS`; `"linear"`
        for an output layer.

    Returns:
      An initializer `(key, shape, dtype) -> array` of that shape and dtype. It raises
      ValueError for a shape of rank below 2, which has no fan-in.

    Raises:
      ValueError: if `activation` is not a key of `GAINS`.

    Source: He et al., Delving deep into rectifiers, ICCV 2015; gains as in Dohare et
    al., Loss of plasticity in deep continual learning, Nature 2024.
    """
    if activation not in GAINS:
        choices = ", ".join(repr(name) for name in GAINS)
        raise ValueError(f"unknown activation {activation!r}: choose one of {choices}")
    gain = GAINS[activation]

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> jax.Array:
        bound = gain * math.sqrt(3 / _fan_in(shape))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return unit_by_unit(init)


def uniform_fan_in(fan_in: int | None = None) -> Initializer:
    """Uniform weights within `1 / sqrt(fan_in)`, PyTorch's default for its layers.

    Draws from U(-b, b) with `b = 1 / sqrt(fan_in)`. The paper's convolutional network
    uses it for weights and biases.

    Args:
      fan_in: inputs of each unit. By default the product of all axes of the shape but
        the last; a bias, whose shape does not tell, needs it given.

    Returns:
      An initializer `(key, shape, dtype) -> array` of that shape and dtype. Without
      `fan_in` it raises ValueError for a shape of rank below 2.

    Source: `torch.nn.Linear` and `torch.nn.Conv2d`, `reset_parameters`.
    """

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> jax.Array:
        bound = 1 / math.sqrt(_fan_in(shape) if fan_in is None else fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return unit_by_unit(init)


def unit_by_unit(initializer: Initializer) -> Initializer:
    """Marks an initializer that may draw the weights of a few units alone.

    A reset draws a whole kernel of fresh weights and takes those of the reborn units,
    so that any initializer gives them what it gives them in a new network: orthogonal,
    Glorot's, which looks at the fan-out, or a matrix that was loaded. Where an
    initializer gives a unit the same whether asked for `[..., fan_in, N]` or for
    `[..., fan_in, 1]` (independent draws, whose scale depends on the fan-in alone),
    drawing only what is needed is faster. Those of this module are marked.

    Args:
      initializer: a function `(key, shape, dtype) -> array`.

    Returns:
      The same function, marked.

    Example:
      `unit_by_unit(jax.nn.initializers.he_normal())`
    """

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> jax.Array:
        return initializer(key, shape, dtype)

    init.unit_by_unit = True  # pyrefly: ignore[missing-attribute]
    return init


def draws_unit_by_unit(initializer: Initializer) -> bool:
    """Whether an initializer is marked by `unit_by_unit`."""
    return getattr(initializer, "unit_by_unit", False)


def _fan_in(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"shape {tuple(shape)} has no fan-in: a kernel has shape [..., fan_in, "
            "fan_out]; initialize a bias with zeros or uniform_fan_in(fan_in)"
        )
    return math.prod(shape[:-1])

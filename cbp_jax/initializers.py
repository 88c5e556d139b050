"""Weight initializers with the signature of `jax.nn.initializers`.

An initializer is a function `(key, shape, dtype) -> array` of a typed key, a shape
`[..., fan_out]` whose leading axes make up the fan-in, and a floating dtype (float32 by
default, float64 under x64). It works for dense kernels `[in, out]` and for convolution
kernels `[height, width, in, out]`.

Shapes: N units.
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
        "adalin_tanh": 5 / 3,
        "aid": math.sqrt(2),
        "elu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
        "linear": 1.0,
        "prelu": math.sqrt(2),
        "randomized_smooth_leaky": math.sqrt(2 / (1 + (11 / 48) ** 2)),
        "relu": math.sqrt(2),
        "sigmoid": 1.0,
        "smooth_leaky": math.sqrt(2 / (1 + 0.1**2)),
        "swish": math.sqrt(2),
        "tanh": 5 / 3,
    }
)
"""Gain of each activation.

Those of the paper are as there; leaky ReLU has slope 0.01. PReLU, AID and AdaLin have
the gain of the activation that they extend, and the smooth-leaky ones that of a leaky
ReLU with their default slope, or its mean.
"""


def kaiming_uniform(activation: str) -> Initializer:
    """Returns Kaiming-uniform initialization, which preserves the scale of signals.

    It draws from U(-b, b) with `b = gain * sqrt(3 / fan_in)`, so the standard deviation
    is `gain / sqrt(fan_in)`.

    Args:
      activation: the activation after the layer, a key of `GAINS`; `"linear"`
        for an output layer.

    Returns:
      An initializer `(key, shape, dtype) -> array`. It raises ValueError for a shape
      with fewer than two axes, which has no fan-in.

    Raises:
      ValueError: if `activation` is not a key of `GAINS`.

    Source: He et al., Delving deep into rectifiers, ICCV 2015; gains as in Dohare et
    al., Loss of plasticity in deep continual learning, Nature 2024.
    """
    if activation not in GAINS:
        choices = ", ".join(repr(name) for name in GAINS)
        raise ValueError(f"Unknown activation {activation!r}. Use one of {choices}.")
    gain = GAINS[activation]

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> jax.Array:
        bound = gain * math.sqrt(3 / _fan_in(shape))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return unit_by_unit(init)


def uniform_fan_in(fan_in: int | None = None) -> Initializer:
    """Returns uniform initialization with bound `1 / sqrt(fan_in)`, PyTorch's default.

    It draws from U(-b, b) with `b = 1 / sqrt(fan_in)`. The paper's convolutional
    network uses it for weights and biases.

    Args:
      fan_in: number of inputs of each unit. The default is the product of all axes of
        the shape but the last. Pass it for a bias, whose shape does not contain it.

    Returns:
      An initializer `(key, shape, dtype) -> array`. Without `fan_in` it raises
      ValueError for a shape with fewer than two axes.

    Source: `torch.nn.Linear` and `torch.nn.Conv2d`, `reset_parameters`.
    """

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
    ) -> jax.Array:
        bound = 1 / math.sqrt(_fan_in(shape) if fan_in is None else fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return unit_by_unit(init)


def unit_by_unit(initializer: Initializer) -> Initializer:
    """Marks an initializer that can draw the weights of a few units on their own.

    By default a reset draws a whole kernel and uses the columns of the reset units, so
    that any initializer gives a reset unit the same distribution as a new network: an
    orthogonal one, Glorot's, which depends on the fan-out, or a loaded matrix. If the
    draws are independent and their scale depends only on the fan-in, a unit gets the
    same distribution from `[..., fan_in, N]` and `[..., fan_in, 1]`. Mark such an
    initializer: drawing only the weights that are needed is faster. Those in this
    module are marked.

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
            f"Shape {tuple(shape)} has no fan-in, expected a kernel [..., fan_in, "
            "fan_out]. Initialize a bias with zeros or uniform_fan_in(fan_in)."
        )
    return math.prod(shape[:-1])

"""Types of arguments and states, for annotations."""

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import jax
from jax.typing import DTypeLike

PyTree: TypeAlias = Any
"""Any pytree of arrays."""

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
"""`(key, shape, dtype) -> array`, like those of `jax.nn.initializers`."""

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a schedule that maps a count of updates (int32 scalar) to a number."""

LossFn = Callable[[PyTree, PyTree, PyTree], jax.Array]
"""Maps params, inputs and targets to a scalar loss."""

AxisName = Hashable
"""The name of an axis of `jax.shard_map` or `jax.pmap`, or a tuple of names."""

"""Which images a task presents, and in which order."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp


def _without_replacement(key: jax.Array, num_images: int, number: int) -> jax.Array:
    """Shuffles all images as often as needed: none repeats before all have appeared."""
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
"""`(key, num_images, number) -> indices`, int32 `[number]`, by name."""

"""Draws the incoming weights of reborn units.

Shapes: N units of a group, K reset at most in one update.
"""

from typing import Any

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
import jax.numpy as jnp

from cbp_jax.initializers import draws_unit_by_unit
from cbp_jax.resets.places import Place
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.units import Initializer


def draw_columns(
    initializer: Initializer,
    place: Place,
    shape: tuple[int, ...],
    dtype: Any,
    key: jax.Array,
    units: jax.Array,
) -> jax.Array:
    """Draws the weights of K units as the initializer gives them in a whole kernel.

    Args:
      initializer: of the group.
      place: where an incoming kernel has the units.
      shape: of the kernel.
      dtype: of the kernel.
      key: of this update, group and kernel.
      units: their indices, int32 [K], N where unused.

    Returns:
      An array `[*window, fan_in, K]`.
    """
    *leading, num_units = place.full_shape(shape)
    if draws_unit_by_unit(initializer):

        def draw_unit(slot: jax.Array) -> jax.Array:
            slot_key = jax.random.fold_in(key, slot)
            return initializer(slot_key, (*leading, 1), dtype).astype(dtype)

        # A key for each unit makes its weights independent of the bound K.
        slots = jnp.arange(units.size, dtype=jnp.uint32)
        return jax.vmap(draw_unit, out_axes=-1)(slots).squeeze(-2)

    def draw(key: jax.Array) -> jax.Array:
        return initializer(key, (*leading, num_units), dtype).astype(dtype)

    # Several QR decompositions in one call can hang on a CPU, see `cbp_jax.metrics`.
    kernel = lax.platform_dependent(key, cpu=sequential_vmap(draw), default=draw)
    return jnp.take(kernel, units, axis=-1, mode="clip")


def check_initializer(
    initializer: Initializer, group: ResolvedGroup, leaves: list[jax.Array]
) -> None:
    """Raises ValueError if a group's incoming kernels cannot be drawn like this."""
    for place in group.incoming:
        leaf = leaves[place.leaf]
        wanted = place.full_shape(jnp.shape(leaf))

        def draw(key: jax.Array, shape: Any = wanted, dtype: Any = leaf.dtype) -> Any:
            return initializer(key, shape, dtype)

        asked = f"(key, {wanted}, {leaf.dtype})"
        try:
            drawn = jax.eval_shape(draw, jax.random.key(0))
        except Exception as error:
            raise ValueError(
                f"The initializer of unit group {group.name!r} fails for {asked}: "
                f"{error} Give a function of key, shape and dtype, as those of "
                "jax.nn.initializers; one of Haiku's, which takes no key, as lambda "
                "key, shape, dtype: hk.transform(lambda: initializer(shape, dtype))"
                ".apply({}, key)."
            ) from error
        if getattr(drawn, "shape", None) != wanted:
            raise ValueError(
                f"The initializer of unit group {group.name!r} gives shape "
                f"{getattr(drawn, 'shape', drawn)} for {asked}."
            )

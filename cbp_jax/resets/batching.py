"""A conditional that stays one under `jax.vmap`."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp


def cond_any_lane(
    predicate: jax.Array,
    work: Callable[[Any], Any],
    skip: Callable[[Any], Any],
    operand: Any,
) -> Any:
    """Returns `work(operand)` if the predicate holds in any lane, else `skip(operand)`.

    `lax.cond` turns into a select under `vmap` and pays for both branches every time.
    Here all lanes do the work when one needs it, and none does otherwise.

    Args:
      predicate: bool scalar, batched or not.
      work: must return what `skip` does wherever the predicate is false, because lanes
        may be made to do it. Neither function may close over traced arrays.
      skip: the cheap branch.
      operand: pytree of arrays, the functions' only argument.

    Returns:
      A pytree of arrays, of the same structure, shapes and dtypes from both functions.
    """

    @custom_vmap
    def conditional(predicate: jax.Array, operand: Any) -> Any:
        return lax.cond(predicate, work, skip, operand)

    @conditional.def_vmap
    def _(lanes: int, is_batched: Any, predicate: jax.Array, operand: Any) -> Any:
        predicate_is_batched, operand_is_batched = is_batched
        operand = jax.tree.map(
            lambda leaf, batched: (
                leaf if batched else jnp.broadcast_to(leaf, (lanes, *leaf.shape))
            ),
            operand,
            operand_is_batched,
        )
        if predicate_is_batched:
            predicate = jnp.any(predicate)
        out = cond_any_lane(predicate, jax.vmap(work), jax.vmap(skip), operand)
        return out, jax.tree.map(lambda _: True, out)

    return conditional(predicate, operand)

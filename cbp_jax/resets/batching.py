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
        branches = _varying_alike(work, skip, operand)
        return lax.cond(predicate, *branches, operand)

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


def _varying_alike(
    work: Callable[[Any], Any], skip: Callable[[Any], Any], operand: Any
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Lets branches inside `shard_map` return what varies over the same mesh axes.

    A constant in one branch is the same on all devices; a conditional does not take it
    for what differs from device to device in the other.
    """
    if not any(_varying_axes(leaf) for leaf in jax.tree.leaves(operand)):
        return work, skip
    axes = [
        _varying_axes(left) | _varying_axes(right)
        for left, right in zip(
            jax.tree.leaves(jax.eval_shape(work, operand)),
            jax.tree.leaves(jax.eval_shape(skip, operand)),
            strict=True,
        )
    ]

    def varying(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def cast(operand: Any) -> Any:
            leaves, treedef = jax.tree.flatten(function(operand))
            for index, leaf in enumerate(leaves):
                missing = tuple(sorted(axes[index] - _varying_axes(leaf)))
                if missing:
                    leaves[index] = lax.pcast(leaf, missing, to="varying")
            return treedef.unflatten(leaves)

        return cast

    return varying(work), varying(skip)


def _varying_axes(leaf: Any) -> frozenset[str]:
    """Returns the mesh axes of a `shard_map` over which an array varies."""
    described = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    manual = getattr(described, "manual_axis_type", None)  # Elsewhere `vma`.
    varying = getattr(described, "vma", None) if manual is None else manual.varying
    return varying or frozenset()

"""Finds the chosen units and draws their weights, only when any is due.

Shapes: N units of a group, K reset at most in one update.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax.resets.batching import cond_any_lane
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.rule import Choice
from cbp_jax.resets.units import Initializer

# Purposes of the random numbers derived from the state's key.
_NEXT_KEY, _FRESH_WEIGHTS, _THIS_STEP = range(3)


class Replacement(NamedTuple):
    """The units of one group that are reset in an update, and their new weights."""

    units: jax.Array  # Indices int32 [K], N where unused.
    mask: jax.Array  # bool [N].
    # For each incoming leaf an array that broadcasts to it, with fresh weights where
    # the units are and anything elsewhere.
    weights: tuple[jax.Array, ...]


def replaced_mask(replaced: jax.Array, num_units: int) -> jax.Array:
    """Turns indices int32 [K], N where unused, into a mask bool [N]."""
    indices = jnp.arange(num_units, dtype=replaced.dtype)
    return jnp.any(indices[:, None] == replaced, axis=1)


def nobody(
    groups: Sequence[ResolvedGroup], most: Mapping[str, int]
) -> dict[str, jax.Array]:
    """Returns the indices int32 [K] by group name for an update that resets no unit."""
    return {
        group.name: jnp.full(most[group.name], group.num_units, jnp.int32)
        for group in groups
    }


def select_and_draw(
    groups: Sequence[ResolvedGroup],
    order: Sequence[str],
    choices: Mapping[str, Choice],
    most: Mapping[str, int],
    initializer: Initializer,
    rng_key: jax.Array,
    leaves: Sequence[jax.Array],
) -> tuple[dict[str, Replacement], jax.Array]:
    """Turns choices into units and fresh weights.

    Args:
      groups: the resolved groups that may lose units.
      order: names of all groups, also of those that may not.
      choices: by group name.
      most: K by group name.
      initializer: of groups that have none of their own.
      rng_key: the state's key.
      leaves: the params, flattened; only shapes and dtypes matter.

    Returns:
      The replacement of each group by name, and the next key, which is the old one if
      nobody is due, so that a lane does not depend on the lanes beside it.
    """
    if not groups:
        return {}, rng_key
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]

    def work(operand: Any) -> Any:
        scores, due, rng_key = operand
        fresh_key = jax.random.fold_in(rng_key, _FRESH_WEIGHTS)
        replacements = {}
        for group in groups:
            name, bound = group.name, most[group.name]
            key = jax.random.fold_in(fresh_key, order.index(name))
            units = _lowest(scores[name], due[name], bound)
            draw = group.group.initializer or initializer
            columns = _draw_columns(draw, group, key, shapes, bound)
            if bound == group.num_units:  # As large as the leaf: lay only when due.
                columns = _lay_columns(group, columns, units)
            mask = replaced_mask(units, group.num_units)
            replacements[name] = Replacement(units, mask, columns)
        next_key = jax.random.fold_in(rng_key, _NEXT_KEY)
        return replacements, jnp.where(_any_due(due), next_key, rng_key)

    def skip(operand: Any) -> Any:
        replacements, _ = jax.eval_shape(work, operand)
        replacements = jax.tree.map(jnp.zeros_like, replacements)
        for name, units in nobody(groups, most).items():
            replacements[name] = replacements[name]._replace(units=units)
        _, _, rng_key = operand
        return replacements, rng_key

    scores = {group.name: choices[group.name].score for group in groups}
    due = {group.name: choices[group.name].number for group in groups}
    replacements, rng_key = cond_any_lane(
        _any_due(due), work, skip, (scores, due, rng_key)
    )
    for group in groups:
        if most[group.name] < group.num_units:  # Small: laying is fused into its use.
            found = replacements[group.name]
            laid = _lay_columns(group, found.weights, found.units)
            replacements[group.name] = found._replace(weights=laid)
    return replacements, rng_key


def step_keys(
    rng_key: jax.Array, age: jax.Array, groups: Sequence[ResolvedGroup]
) -> dict[str, jax.Array]:
    """Returns a key for each group at this update, by name.

    Between two resets the state's key stays and the ages grow, so their sum tells the
    updates apart. An update that draws nothing then costs nothing.

    Args:
      rng_key: the state's key.
      age: of the units of any one group, int32 [N].
      groups: the resolved groups.
    """
    clock = jnp.sum(age).astype(jnp.uint32)
    key = jax.random.fold_in(jax.random.fold_in(rng_key, _THIS_STEP), clock)
    return {
        group.name: jax.random.fold_in(key, index) for index, group in enumerate(groups)
    }


def _any_due(due: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_or, [number > 0 for number in due.values()])


def _lowest(score: jax.Array, number: jax.Array, bound: int) -> jax.Array:
    """Finds the units of lowest score [N], among equals the lowest index: int32 [K]."""
    _, indices = lax.top_k(-score, bound)
    indices = indices.astype(jnp.int32)
    return jnp.where(jnp.arange(bound, dtype=jnp.int32) < number, indices, score.size)


def _draw_columns(
    initializer: Initializer,
    group: ResolvedGroup,
    key: jax.Array,
    shapes: Sequence[tuple[tuple[int, ...], Any]],
    number: int,
) -> tuple[jax.Array, ...]:
    """Draws the weights of K units for each incoming leaf, K along the unit axis."""
    columns = []
    for index, place in enumerate(group.incoming):
        shape, dtype = shapes[place.leaf]
        shape = place.fresh_shape(shape)
        leaf_key = jax.random.fold_in(key, index)

        def draw_unit(
            slot: jax.Array, key: Any = leaf_key, shape: Any = shape, dtype: Any = dtype
        ) -> jax.Array:
            return initializer(jax.random.fold_in(key, slot), shape, dtype)

        # A key for each unit makes its weights independent of the bound K.
        slots = jnp.arange(number, dtype=jnp.uint32)
        drawn = jax.vmap(draw_unit, out_axes=-1)(slots).squeeze(-2)
        columns.append(place.from_fresh(drawn))
    return tuple(columns)


def _lay_columns(
    group: ResolvedGroup, columns: Sequence[jax.Array], units: jax.Array
) -> tuple[jax.Array, ...]:
    """Puts K fresh columns where their units are; other columns are arbitrary."""
    if units.size == 1:
        return tuple(columns)
    indices = jnp.arange(group.num_units, dtype=units.dtype)
    slot = jnp.argmax(indices[:, None] == units, axis=1)
    return tuple(
        jnp.take(fresh, slot, axis=place.axis)
        for place, fresh in zip(group.incoming, columns, strict=True)
    )

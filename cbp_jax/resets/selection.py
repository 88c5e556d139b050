"""Finds the chosen units and draws their weights, only when any is due.

Shapes: N units of a group, S stack axes, K reset at most in one update.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax.resets.batching import cond_any_lane
from cbp_jax.resets.drawing import draw_columns
from cbp_jax.resets.resolution import ResolvedGroup
from cbp_jax.resets.rule import Choice
from cbp_jax.resets.units import Initializer

# Purposes of the random numbers derived from the state's key.
_NEXT_KEY, _FRESH_WEIGHTS, _THIS_STEP = range(3)


class Replacement(NamedTuple):
    """The units of one group that are reset in an update, and their new weights."""

    units: jax.Array  # Indices int32 [*S, K], N where unused.
    mask: jax.Array  # bool [*S, N].
    # For each incoming leaf an array that broadcasts to it, with fresh weights where
    # the units are and anything elsewhere.
    weights: tuple[jax.Array, ...]


def replaced_mask(replaced: jax.Array, num_units: int) -> jax.Array:
    """Turns indices int32 [*S, K], N where unused, into a mask bool [*S, N]."""
    indices = jnp.arange(num_units, dtype=replaced.dtype)
    stack = (None,) * (replaced.ndim - 1)
    return jnp.any(indices[*stack, :, None] == replaced[..., None, :], axis=-1)


def nobody(group: ResolvedGroup) -> jax.Array:
    """Returns the indices int32 [*S, N] for an update that resets no unit."""
    return jnp.full((*group.stack, group.num_units), group.num_units, jnp.int32)


def over_stack(function: Callable[..., Any], num_axes: int) -> Callable[..., Any]:
    """Lets a function of one slice take arrays with so many stack axes in front."""
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function


def select_and_draw(
    groups: Sequence[ResolvedGroup],
    order: Sequence[str],
    choices: Mapping[str, Choice],
    most: Mapping[str, int],
    initializer_of: Callable[[ResolvedGroup], Initializer],
    rng_key: jax.Array,
    leaves: Sequence[jax.Array],
) -> tuple[dict[str, Replacement], jax.Array]:
    """Turns choices into units and fresh weights.

    Args:
      groups: the resolved groups that may lose units.
      order: names of all groups, also of those that may not.
      choices: by group name; score [*S, N] and number [*S].
      most: K by group name.
      initializer_of: gives a group's initializer.
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
            replace = functools.partial(
                _replace, group, initializer_of(group), shapes, bound
            )
            replacements[name] = over_stack(replace, len(group.stack))(
                scores[name], due[name], _slice_keys(key, group.stack)
            )
        next_key = jax.random.fold_in(rng_key, _NEXT_KEY)
        return replacements, jnp.where(_any_due(due), next_key, rng_key)

    def skip(operand: Any) -> Any:
        replacements, _ = jax.eval_shape(work, operand)
        replacements = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), replacements
        )
        for group in groups:
            found = replacements[group.name]
            unused = jnp.full_like(found.units, group.num_units)
            replacements[group.name] = found._replace(units=unused)
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
            lay = over_stack(functools.partial(_lay_columns, group), len(group.stack))
            laid = lay(found.weights, found.units)
            replacements[group.name] = found._replace(weights=laid)
    return replacements, rng_key


def step_keys(
    rng_key: jax.Array, age: jax.Array, groups: Sequence[ResolvedGroup]
) -> dict[str, jax.Array]:
    """Returns a key for each group and slice at this update, [*S] by name.

    Between two resets the state's key stays and the ages grow, so their sum tells the
    updates apart. An update that draws nothing then costs nothing.

    Args:
      rng_key: the state's key.
      age: of the units of any one group, int32 [*S, N].
      groups: the resolved groups.
    """
    clock = jnp.sum(age).astype(jnp.uint32)
    key = jax.random.fold_in(jax.random.fold_in(rng_key, _THIS_STEP), clock)
    return {
        group.name: _slice_keys(jax.random.fold_in(key, index), group.stack)
        for index, group in enumerate(groups)
    }


def _slice_keys(key: jax.Array, stack: tuple[int, ...]) -> jax.Array:
    """Returns a key for each slice of a stack: [*S]."""
    return jax.random.split(key, stack) if stack else key


def _any_due(due: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(
        jnp.logical_or, [jnp.any(number > 0) for number in due.values()]
    )


def _lowest(score: jax.Array, number: jax.Array, bound: int) -> jax.Array:
    """Finds the units of lowest score [N], among equals the lowest index: int32 [K].

    Those of score inf or NaN are never among them.
    """
    score = jnp.where(jnp.isnan(score), jnp.inf, score)
    negative, indices = lax.top_k(-score, bound)
    indices = indices.astype(jnp.int32)
    is_chosen = jnp.arange(bound, dtype=jnp.int32) < number
    return jnp.where(is_chosen & (negative > -jnp.inf), indices, score.size)


def _replace(
    group: ResolvedGroup,
    initializer: Initializer,
    shapes: Sequence[tuple[tuple[int, ...], Any]],
    bound: int,
    score: jax.Array,
    number: jax.Array,
    key: jax.Array,
) -> Replacement:
    """Replaces units of one slice."""
    units = _lowest(score, number, bound)
    columns = []
    for index, place in enumerate(group.incoming):
        shape, dtype = shapes[place.leaf]
        leaf_key = jax.random.fold_in(key, index)
        drawn = draw_columns(initializer, place, shape, dtype, leaf_key, units)
        columns.append(place.lay_out(drawn, shape))
    weights = tuple(columns)
    if bound == group.num_units:  # As large as the leaf: lay only when due.
        weights = _lay_columns(group, weights, units)
    return Replacement(units, replaced_mask(units, group.num_units), weights)


def _lay_columns(
    group: ResolvedGroup, columns: Sequence[jax.Array], units: jax.Array
) -> tuple[jax.Array, ...]:
    """Puts K fresh columns where their units are; other columns are arbitrary."""
    slots = None
    if units.size > 1:
        indices = jnp.arange(group.num_units, dtype=units.dtype)
        slots = jnp.argmax(indices[:, None] == units[None], axis=1)
    return tuple(
        place.put(fresh, slots)
        for place, fresh in zip(group.incoming, columns, strict=True)
    )

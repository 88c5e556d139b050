"""Checks what a transformation that resets units is given."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cbp_jax.checks import check_numbers
from cbp_jax.resets.leaves import COLLECTION
from cbp_jax.resets.resolution import ResolvedGroup, resolve_units
from cbp_jax.resets.rule import Choice
from cbp_jax.resets.units import PyTree, UnitGroup


def check_transferable(groups: Sequence[ResolvedGroup]) -> None:
    """Raises ValueError for a group whose consumers' biases are not named."""
    for group in groups:
        if not group.outgoing_bias:
            raise ValueError(
                f"transfer_mean needs the biases of the consumers of unit group "
                f"{group.name!r}; give them as outgoing_bias."
            )


def check_choice_of_units(
    group: ResolvedGroup, choice: Choice, needs_mean: bool
) -> None:
    """Raises ValueError if what a rule returned for a group is not a `Choice`.

    Args:
      group: the resolved group.
      choice: its arrays have the stack axes in front.
      needs_mean: whether the rule must say the mean activations.
    """
    each = (*group.stack, group.num_units)
    rule = f"The rule of unit group {group.name!r}"
    meaning = "one for each unit"
    check_numbers(f"{rule}: score", choice.score, each, meaning, jnp.floating)
    meaning = "the number of units to reset"
    check_numbers(f"{rule}: number", choice.number, group.stack, meaning, jnp.integer)
    if needs_mean:
        meaning, mean = "one for each unit", choice.mean_activation
        check_numbers(f"{rule}: mean_activation", mean, each, meaning)


def check_arguments(
    units: Sequence[UnitGroup],
    params: PyTree | None,
    features: Mapping[str, jax.Array] | None,
) -> tuple[tuple[ResolvedGroup, ...], dict[str, jax.Array]]:
    """Resolves the groups and finds their features; ValueError where any is missing."""
    if params is None:
        raise ValueError(
            "Resets of units need the params: tx.update(grads, state, params, "
            "features=features)."
        )
    groups = resolve_units(units, params)
    features = {} if features is None else features
    found = {group.name: _feature(group.name, features) for group in groups}
    missing = [name for name, feature in found.items() if feature is None]
    if missing:
        raise ValueError(
            "Resets of units need the activations of every unit group; missing: "
            f"{missing}, given: {list(features)}. Pass the update a mapping of names "
            "to arrays [batch, ..., units]: features=features. (flax's TrainState "
            "drops them in apply_gradients, that of cbp_jax.training does not.)"
        )
    return groups, found


def _feature(name: str, features: Mapping[str, jax.Array]) -> jax.Array | None:
    """Finds a group's activations, which need not repeat the params' collection."""
    return features.get(name, features.get(name.removeprefix(COLLECTION)))

"""Checks what a transformation that resets units is given."""

from collections.abc import Mapping, Sequence

import jax

from cbp_jax.resets.leaves import COLLECTION
from cbp_jax.resets.resolution import ResolvedGroup, resolve_units
from cbp_jax.resets.units import PyTree, UnitGroup


def check_transferable(groups: Sequence[ResolvedGroup]) -> None:
    """Raises ValueError for a group whose consumers' biases are not named."""
    for group in groups:
        if not group.outgoing_bias:
            raise ValueError(
                f"transfer_mean needs the biases of the consumers of unit group "
                f"{group.name!r}; give them as outgoing_bias."
            )


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

"""What the hidden layers of all networks share."""

from collections.abc import Sequence

import jax

from cbp_jax._units import UnitGroup
from cbp_jax.layers._dropout import dropout
from cbp_jax.layers._normalization import normalization_named
from cbp_jax.networks._activations import ACTIVATION_LAYERS, slope_path


def has_bias(normalization: str) -> bool:
    """Whether layers have a bias; the shift of a normalization replaces it."""
    found = normalization_named(normalization)
    return found is None or not found.has_shift


def norm_name(index: int) -> str:
    """Returns the name of a hidden layer's normalization; layers count from 0."""
    return f"norm_{index}"


def drop(
    hidden: jax.Array,
    index: int,
    rate: float | jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Applies dropout to a hidden layer, counted from 0; no dropout without a key."""
    if key is None:
        return hidden
    return dropout(jax.random.fold_in(key, index), hidden, rate)


def with_norms(
    groups: Sequence[UnitGroup], normalization: str
) -> tuple[UnitGroup, ...]:
    """Adds the leaves of normalizations to the groups of a network's hidden layers.

    Args:
      groups: all hidden layers in forward order, as returned by `sequential_units`. The
        last of them feeds the head, which has a bias and no normalization.
      normalization: "none", or a name in `cbp_jax.layers.NORMALIZATIONS`.

    Returns:
      The groups, each including the normalization after its layer.
    """
    found = normalization_named(normalization)
    if found is None:
        return tuple(groups)

    def with_norm(index: int, group: UnitGroup) -> UnitGroup:
        norm = norm_name(index)
        feeds_head = index == len(groups) - 1
        has_outgoing_bias = feeds_head or not found.has_shift
        statistics = tuple(f"{each}/{norm}" for each in found.collections)
        return group._replace(
            bias=None if found.has_shift else group.bias,
            outgoing_bias=group.outgoing_bias if has_outgoing_bias else None,
            norm_scale=f"{norm}/scale",
            norm_bias=f"{norm}/bias" if found.has_shift else None,
            statistics=statistics or None,
        )

    return tuple(with_norm(index, group) for index, group in enumerate(groups))


def with_slopes(groups: Sequence[UnitGroup], activation: str) -> tuple[UnitGroup, ...]:
    """Adds the learned slopes of an activation to the groups of all hidden layers."""
    layer = ACTIVATION_LAYERS.get(activation)
    if layer is None or not layer.has_slope:
        return tuple(groups)
    return tuple(
        group._replace(slope=slope_path(index)) for index, group in enumerate(groups)
    )

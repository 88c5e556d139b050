"""Normalizations of hidden layers, by name."""

from collections.abc import Callable, Mapping
import math
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from cbp_jax._numbers import check_choice
from cbp_jax.layers._gradients_with_state import BACKWARD_STATS, FORWARD_STATS
from cbp_jax.layers._online_normalization import OnlineNorm


class Normalization(NamedTuple):
    """A normalization, and what a network needs to know about it."""

    module: Callable[..., nn.Module]  # Has a param `scale` [N].
    has_shift: bool  # Whether it also has a param `bias` [N].
    collections: tuple[str, ...] = ()  # Collections of its state, with leaves [N].


NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType(
    {
        "batch": Normalization(nn.BatchNorm, True, (FORWARD_STATS,)),
        "online": Normalization(OnlineNorm, True, (FORWARD_STATS, BACKWARD_STATS)),
        "layer": Normalization(nn.LayerNorm, True),
        "rms": Normalization(nn.RMSNorm, False),
    }
)
"""The normalizations by the name that networks take."""


def normalization_named(name: str) -> Normalization | None:
    """Returns the normalization of that name; None for "none".

    Raises:
      ValueError: the name is unknown; the message lists the choices.
    """
    check_choice("normalization", name, ("none", *NORMALIZATIONS))
    return NORMALIZATIONS.get(name)


def normalize(
    kind: str,
    inputs: jax.Array,
    *,
    train: bool,
    name: str,
    options: Mapping[str, Any],
) -> jax.Array:
    """Normalizes a layer inside a `flax.linen.compact` method.

    Args:
      kind: a key of `NORMALIZATIONS`, or "none" to return the inputs.
      inputs: `[batch, ..., N]`. "layer" and "rms" normalize over the last axis, the
        others over all axes but the last.
      train: whether to use and update the statistics as in training.
      name: name of the submodule.
      options: further attributes of the module.

    Returns:
      Normalized inputs of the same shape.

    Raises:
      ValueError: unknown kind, or batch normalization in training with a single number
        per unit.
    """
    normalization = normalization_named(kind)
    if normalization is None:
        return inputs
    if normalization.collections:
        options = {"use_running_average": not train, **options}
    module = normalization.module(name=name, **options)
    if kind == "batch" and train and not module.is_initializing():
        _check_batch(inputs)
    return module(inputs)


def _check_batch(inputs: jax.Array) -> None:
    if math.prod(inputs.shape[:-1]) < 2:
        raise ValueError(
            f"Batch normalization in training got inputs of shape {inputs.shape}, but "
            "needs more than one example: a single number minus its own mean is 0. Set "
            "normalization to 'online' to train on one example at a time."
        )

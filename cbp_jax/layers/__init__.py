"""Layers, including alternatives to continual backprop."""

import warnings as _warnings

from cbp_jax.layers._dropout import dropout
from cbp_jax.layers._gradients_with_state import (
    BACKWARD_STATS,
    FORWARD_STATS,
    value_and_grad_with_state,
)
from cbp_jax.layers._interval_dropout import aid
from cbp_jax.layers._learned_slopes import adalin, prelu
from cbp_jax.layers._normalization import NORMALIZATIONS, Normalization, normalize
from cbp_jax.layers._online_normalization import (
    OnlineNorm,
    OnlineNormalizationState,
    init_online_normalization,
    layer_scaling,
    online_normalization,
)
from cbp_jax.layers._paired_activations import crelu, sin_cos
from cbp_jax.layers._smooth_leaky import randomized_smooth_leaky, smooth_leaky

__all__ = [
    "BACKWARD_STATS",
    "FORWARD_STATS",
    "NORMALIZATIONS",
    "Normalization",
    "OnlineNorm",
    "OnlineNormalizationState",
    "adalin",
    "aid",
    "crelu",
    "dropout",
    "init_online_normalization",
    "layer_scaling",
    "normalize",
    "online_normalization",
    "prelu",
    "randomized_smooth_leaky",
    "sin_cos",
    "smooth_leaky",
    "value_and_grad_with_state",
]

_MOVED = ("CONVOLUTIONS", "convolution_named", "max_pool", "patches_convolution")


def __getattr__(name: str) -> object:
    """Looks up names that have moved to `cbp_jax.networks`, and warns."""
    if name in _MOVED:
        from cbp_jax import networks

        _warnings.warn(
            f"cbp_jax.layers.{name} is now cbp_jax.networks.{name}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(networks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

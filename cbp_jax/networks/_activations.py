"""Activations of hidden layers, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flax import linen as nn
import jax

from cbp_jax.layers._paired_activations import crelu, sin_cos

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": nn.relu,
        "leaky_relu": nn.leaky_relu,
        "tanh": nn.tanh,
        "sigmoid": nn.sigmoid,
        "elu": nn.elu,
        "swish": nn.swish,
        "linear": lambda x: x,
        "crelu": crelu,
        "sin_cos": sin_cos,
    }
)
"""Activations `[..., N] -> [..., N]`; those in `PAIRED` return `[..., 2, N]`."""

# The gain of each paired activation. The mean square of a pair is half that of its
# input (CReLU) or 1/2 (sine and cosine), and a pair doubles the fan-in. A gain of
# sqrt(2) therefore preserves the mean square of the inputs from layer to layer.
PAIRED: Mapping[str, str] = MappingProxyType({"crelu": "relu", "sin_cos": "relu"})


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of that name.

    Raises:
      ValueError: the name is unknown; the message lists the choices.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {list(ACTIVATIONS)}, got {name!r}."
        )
    return ACTIVATIONS[name]

"""Activations of hidden layers, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from cbp_jax._numbers import check_choice
from cbp_jax.layers._interval_dropout import aid
from cbp_jax.layers._learned_slopes import adalin, prelu
from cbp_jax.layers._paired_activations import crelu, sin_cos
from cbp_jax.layers._smooth_leaky import randomized_smooth_leaky, smooth_leaky

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


class ActivationLayer(NamedTuple):
    """An activation that depends on more than its inputs `[..., N]`.

    Attributes:
      function: `(inputs, **options) -> outputs`, both `[..., N]`.
      is_random: whether it takes a `key` in training; in evaluation it is None.
      has_slope: whether it takes a `slope`, a param `[N]` that is initially 0.
    """

    function: Callable[..., jax.Array]
    is_random: bool = False
    has_slope: bool = False


ACTIVATION_LAYERS: Mapping[str, ActivationLayer] = MappingProxyType(
    {
        "aid": ActivationLayer(aid, is_random=True),
        "smooth_leaky": ActivationLayer(smooth_leaky),
        "randomized_smooth_leaky": ActivationLayer(
            randomized_smooth_leaky, is_random=True
        ),
        "prelu": ActivationLayer(prelu, has_slope=True),
        "adalin_tanh": ActivationLayer(adalin, has_slope=True),
    }
)
"""Activations that are random, learn a slope, or have options that may be traced."""


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of the inputs alone of that name.

    Raises:
      ValueError: it is not in `ACTIVATIONS`; the message lists the choices.
    """
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def check_activation(name: str) -> None:
    """Raises ValueError unless networks take the activation; lists the choices."""
    check_choice("activation", name, (*ACTIVATIONS, *ACTIVATION_LAYERS))


def slope_path(index: int) -> str:
    """Returns the path of the slopes of a hidden layer; layers count from 0."""
    return f"{_layer_name(index)}/slope"


def activate(
    kind: str,
    inputs: jax.Array,
    index: int,
    *,
    key: jax.Array | None,
    options: Mapping[str, Any],
) -> jax.Array:
    """Applies an activation inside a `flax.linen.compact` method.

    Args:
      kind: a key of `ACTIVATIONS` or `ACTIVATION_LAYERS`.
      inputs: `[..., N]`.
      index: number of the hidden layer, from 0.
      key: key of the network's random activations; None for evaluation.
      options: options of an activation layer that differ from the defaults.

    Returns:
      `[..., N]`, or `[..., 2, N]` if the activation is paired.
    """
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind](inputs)
    layer, options = ACTIVATION_LAYERS[kind], dict(options)
    if layer.is_random and key is not None:
        options["key"] = jax.random.fold_in(key, index)
    if layer.has_slope:
        options["slope"] = _Slopes(inputs.shape[-1], name=_layer_name(index))()
    return layer.function(inputs, **options)


class _Slopes(nn.Module):
    """The learned slopes of a layer's units."""

    num_units: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("slope", nn.initializers.zeros, (self.num_units,))


def _layer_name(index: int) -> str:
    return f"activation_{index}"

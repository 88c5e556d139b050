"""Builds networks from configs, and describes them for methods."""

from collections.abc import Callable, Mapping, Sequence
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any

from flax.core import FrozenDict

from cbp_jax import layers, networks
from cbp_jax.initializers import GAINS
from cbp_jax.optimizers import uniform_fan_in_bound
from experiments.learning.checks import ConfigError, check_choice

ACTIVATION_OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "aid": {"p": "aid_p"},
        "smooth_leaky": {
            "slope": "smooth_leaky_slope",
            "sharpness": "smooth_leaky_sharpness",
        },
        "randomized_smooth_leaky": {
            "low": "smooth_leaky_low",
            "high": "smooth_leaky_high",
            "sharpness": "smooth_leaky_sharpness",
        },
    }
)
"""For each activation with options, the hyperparameter of each option."""

_NORMALIZATIONS = ("none", *layers.NORMALIZATIONS)
_POOL = 2


def make_network(
    config: Any, input_shape: tuple[int, ...], num_outputs: int
) -> networks.MLP | networks.ConvNet:
    """Builds the network for inputs of a shape: an MLP, or a ConvNet for images.

    Raises:
      ValueError: the shape fits neither; or see `make_mlp` and `make_conv_net`.
    """
    match len(input_shape):
        case 1:
            return make_mlp(config, num_outputs)
        case 3:
            return make_conv_net(config, input_shape, num_outputs)
    raise ValueError(
        f"No network takes inputs of shape {input_shape}; pass inputs of shape (size,) "
        "or (height, width, channels)."
    )


def make_mlp(config: Any, num_outputs: int) -> networks.MLP:
    """Builds the MLP of `hidden_layers` layers of `hidden_units` units.

    Without hidden layers it is a linear model.

    Args:
      config: a config whose `hidden_units` is the width of all layers, or has one for
        each.
      num_outputs: outputs of the head.

    Raises:
      ValueError: the activation or normalization is unknown, or a size is out of range.
    """
    return networks.MLP(
        _hidden_widths(config),
        num_outputs,
        config.activation,
        config.normalization,
    )


def make_conv_net(
    config: Any, image_shape: tuple[int, ...], num_outputs: int
) -> networks.ConvNet:
    """Builds a convolutional network with dense layers after the convolutions.

    Args:
      config: a config with `conv_channels`, `conv_sizes` and `convolution`;
        `hidden_layers` and `hidden_units` for the dense layers; `activation` and
        `normalization`.
      image_shape: (height, width, channels).
      num_outputs: outputs of the head.

    Returns:
      The network; without hidden layers it is a linear model.

    Raises:
      ValueError: the activation, normalization or convolution is unknown; or the sizes
        do not fit each other or the images.
    """
    channels, sizes = tuple(config.conv_channels), tuple(config.conv_sizes)
    if len(channels) != len(sizes) or min((*channels, *sizes, 1)) < 1:
        raise ConfigError(
            "config.conv_channels and config.conv_sizes must have the same length and "
            f"numbers of at least 1, got {channels} and {sizes}."
        )
    _check_map(image_shape, sizes)
    check_choice("convolution", config.convolution, ("auto", *networks.CONVOLUTIONS))
    return networks.ConvNet(
        num_outputs=num_outputs,
        activation=config.activation,
        conv_channels=channels,
        conv_sizes=sizes,
        dense_units=_hidden_widths(config),
        convolution=config.convolution,
        normalization=config.normalization,
    )


def layer_sizes(
    params: Any, layers: Sequence[str], activation: str
) -> dict[str, list[int]]:
    """Counts the weights, units and features of each layer.

    Args:
      params: params of the network, or their shapes.
      layers: names in forward order, the head last.
      activation: activation of the hidden layers.

    Returns:
      For each layer `num_weights`, the size of its kernel; `num_units`, its units; and
      `num_features`, their outputs at each position. The last two are 0 for the head.
    """
    kernels = [params[layer]["kernel"] for layer in layers]
    num_units = [*(kernel.shape[-1] for kernel in kernels[:-1]), 0]
    outputs_per_unit = 2 if activation in networks.PAIRED else 1
    return {
        "num_weights": [kernel.size for kernel in kernels],
        "num_units": num_units,
        "num_features": [outputs_per_unit * number for number in num_units],
    }


def feature_matrices(network: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Reshapes features to matrices; the positions of a map become samples.

    Args:
      network: the network.
      features: activations by layer, as it returns them.

    Returns:
      `[samples, features]` by layer; a unit of a paired activation is two features.
    """
    per_unit = 2 if network.activation in networks.PAIRED else 1
    return {
        name: layer.reshape(-1, per_unit * layer.shape[-1])
        for name, layer in features.items()
    }


def with_hyperparameters(network: Any, hyperparameters: SimpleNamespace) -> Any:
    """Sets the hyperparameters of a network's layers, traced or not."""
    network = network.clone(
        activation_options=FrozenDict(activation_options(network, hyperparameters))
    )
    if network.normalization != "online":
        return network
    return network.clone(
        normalization_options=FrozenDict(
            forward_decay=hyperparameters.online_norm_forward_decay,
            backward_decay=hyperparameters.online_norm_backward_decay,
        )
    )


def activation_options(
    network: Any, hyperparameters: SimpleNamespace
) -> dict[str, Any]:
    """Returns the options of a network's activation, by argument of its function."""
    options = ACTIVATION_OPTIONS.get(network.activation, {})
    return {name: getattr(hyperparameters, field) for name, field in options.items()}


def weight_bounds(network: Any) -> Callable[[str, tuple[int, ...]], float]:
    """Returns the bounds of a network's initial weights, as `clip_weights` takes them.

    They are the bounds of the uniform distributions of `cbp_jax.networks`:
    gain * sqrt(3 / fan_in) in an MLP, 1 / sqrt(fan_in) in the ConvNet.
    """
    if not isinstance(network, networks.MLP):
        return uniform_fan_in_bound
    hidden = networks.PAIRED.get(network.activation, network.activation)

    def bounds(path: str, kernel_shape: tuple[int, ...]) -> float:
        gain = GAINS["linear" if path.startswith("head/") else hidden]
        return gain * math.sqrt(3) * uniform_fan_in_bound(path, kernel_shape)

    return bounds


def _hidden_widths(config: Any) -> tuple[int, ...]:
    """Returns the width of each dense hidden layer.

    Raises:
      ValueError: a field of the hidden layers is invalid.
    """
    number, units = config.hidden_layers, config.hidden_units
    widths = (units,) * number if isinstance(units, int) else tuple(units)
    if number < 0 or min((units,) if isinstance(units, int) else (*units, 1)) < 1:
        raise ConfigError(
            "config.hidden_layers must be at least 0 and config.hidden_units at least "
            f"1, got {number} and {units}."
        )
    if len(widths) != number:
        raise ConfigError(
            f"config.hidden_units {units} has {len(widths)} widths, but "
            f"config.hidden_layers is {number}: give one width for each layer."
        )
    networks.check_activation(config.activation)
    check_choice("normalization", config.normalization, _NORMALIZATIONS)
    return widths


def _check_map(image_shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Raises ConfigError if the convolutions leave no pixels of an image."""
    pixels = min(image_shape[:2])
    left = [pixels]
    for size in sizes:
        left.append((left[-1] - size + 1) // _POOL)
        if left[-1] < 1:
            raise ConfigError(
                f"config.conv_sizes {sizes} are too large for images of {pixels} "
                f"pixels: {' -> '.join(map(str, left))} after each layer and its "
                "max-pooling. Remove layers or make their kernels smaller."
            )

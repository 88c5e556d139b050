"""From a config to a convolutional network."""

from typing import Any

from cbp_jax import layers, networks
from experiments.learning.checks import ConfigError, check_choice
from experiments.learning.networks import NORMALIZATION_HYPERPARAMETERS

_POOL = 2


def make_conv_net(
    config: Any, image_shape: tuple[int, ...], num_outputs: int
) -> networks.ConvNet:
    """Builds the network of `conv_channels` and `conv_sizes`, and dense layers behind.

    Args:
      config: `conv_channels`, `conv_sizes`, `convolution`; for the dense layers
        `hidden_layers` and `hidden_units`; `activation` and `normalization`.
      image_shape: (height, width, channels).
      num_outputs: of the head.

    Returns:
      The network; without any layers it is a linear model.

    Raises:
      ValueError: unknown activation, normalization or convolution; or sizes that do not
        fit together or the images.
    """
    channels, sizes = tuple(config.conv_channels), tuple(config.conv_sizes)
    if len(channels) != len(sizes) or min((*channels, *sizes, 1)) < 1:
        raise ConfigError(
            "config.conv_channels and config.conv_sizes must be as many numbers of at "
            f"least 1, got {channels} and {sizes}."
        )
    if config.hidden_layers < 0 or config.hidden_units < 1:
        raise ConfigError(
            "config.hidden_layers must be at least 0 and config.hidden_units at least "
            f"1, got {config.hidden_layers} and {config.hidden_units}."
        )
    _check_map(image_shape, sizes)
    networks.activation_function(config.activation)
    check_choice("normalization", config.normalization, NORMALIZATION_HYPERPARAMETERS)
    check_choice("convolution", config.convolution, ("auto", *layers.CONVOLUTIONS))
    return networks.ConvNet(
        num_outputs=num_outputs,
        activation=config.activation,
        conv_channels=channels,
        conv_sizes=sizes,
        dense_units=(config.hidden_units,) * config.hidden_layers,
        convolution=config.convolution,
        normalization=config.normalization,
    )


def _check_map(image_shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Raises ConfigError unless something is left of an image after all layers."""
    pixels = min(image_shape[:2])
    left = [pixels]
    for size in sizes:
        left.append((left[-1] - size + 1) // _POOL)
        if left[-1] < 1:
            raise ConfigError(
                f"config.conv_sizes {sizes} leave nothing of images of {pixels} "
                f"pixels: {' -> '.join(map(str, left))} after each layer and its "
                "max-pooling. Leave layers out or make their kernels smaller."
            )

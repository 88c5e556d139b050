"""The convolutional network of the paper's Continual ImageNet."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax

from cbp_jax._types import Initializer
from cbp_jax._units import UnitGroup, sequential_units
from cbp_jax.initializers import uniform_fan_in
from cbp_jax.layers._normalization import normalize
from cbp_jax.networks._activations import PAIRED, activate, check_activation
from cbp_jax.networks._convolution import convolution_named
from cbp_jax.networks._hidden_layers import (
    drop,
    has_bias,
    norm_name,
    with_norms,
    with_slopes,
)
from cbp_jax.networks._max_pooling import max_pool


class ConvNet(nn.Module):
    """The paper's network for Continual ImageNet.

    The layers are convolutions `conv_0` (32 of 5x5), `conv_1` (64 of 3x3) and `conv_2`
    (128 of 3x3) without padding, each followed by the activation and a 2x2 max-pool;
    then `dense_0` and `dense_1` with 128 units, and `head`. Weights and biases are
    uniform within +-1 / sqrt(fan_in). A 32x32 image becomes a 2x2 map of 128 channels.

    Normalizations `norm_0` to `norm_4` precede the activations and replace biases as in
    `MLP`. "batch" and "online" normalize each channel over all positions; "layer" and
    "rms" normalize each position over its channels.

    Attributes:
      num_outputs: number of classes.
      activation: a name in `ACTIVATIONS` or `ACTIVATION_LAYERS`, not in `PAIRED`.
      conv_channels: channels of each convolution.
      conv_sizes: kernel sizes (height and width) of each convolution.
      dense_units: widths of the dense hidden layers.
      convolution: how to compute convolutions: "patches" (fast on a CPU), "xla", or
        "auto", which depends on the backend; see `cbp_jax.networks.convolution_named`.
        Values and gradients are the same.
      normalization: as in `MLP`.
      normalization_options: as in `MLP`.
      activation_options: as in `MLP`.
    """

    num_outputs: int = 2
    activation: str = "relu"
    conv_channels: Sequence[int] = (32, 64, 128)
    conv_sizes: Sequence[int] = (5, 3, 3)
    dense_units: Sequence[int] = (128, 128)
    convolution: str = "auto"
    normalization: str = "none"
    normalization_options: Mapping[str, Any] = FrozenDict()
    activation_options: Mapping[str, Any] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        dropout_rate: float | jax.Array = 0.0,
        dropout_key: jax.Array | None = None,
        train: bool = False,
        activation_key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps images `[batch, height, width, channels]` to outputs and features.

        Args:
          inputs: images `[batch, height, width, channels]`.
          dropout_rate: as in `MLP`; drops individual activations after pooling.
          dropout_key: as in `MLP`.
          train: as in `MLP`.
          activation_key: as in `MLP`.

        Returns:
          Outputs `[batch, num_outputs]`, and a dict from each layer's name to its
          activations before dropout: `[batch, height, width, channels]` after pooling
          for convolutions, `[batch, units]` for dense layers.

        Raises:
          ValueError: unknown or paired activation; unknown normalization or
            convolution; batch normalization in training with a single number per unit.
        """
        check_activation(self.activation)
        if self.activation in PAIRED:
            raise ValueError(
                f"ConvNet got activation {self.activation!r}, which has two outputs "
                "per unit, but supports only those with one. Use 'relu', or an MLP."
            )

        def apply_layer(layer: nn.Module, hidden: jax.Array, index: int) -> jax.Array:
            normalized = normalize(
                self.normalization,
                layer(hidden),
                train=train,
                name=norm_name(index),
                options=self.normalization_options,
            )
            return activate(
                self.activation,
                normalized,
                index,
                key=activation_key,
                options=self.activation_options,
            )

        use_bias = has_bias(self.normalization)
        features = {}
        hidden = inputs
        for index, (channels, size) in enumerate(
            zip(self.conv_channels, self.conv_sizes, strict=True)
        ):
            name = f"conv_{index}"
            convolution = nn.Conv(
                channels,
                (size, size),
                padding="VALID",
                use_bias=use_bias,
                kernel_init=uniform_fan_in(),
                bias_init=uniform_fan_in(size * size * hidden.shape[-1]),
                conv_general_dilated=convolution_named(self.convolution),
                name=name,
            )
            active = apply_layer(convolution, hidden, index)
            features[name] = hidden = max_pool(active, (2, 2))
            hidden = drop(hidden, index, dropout_rate, dropout_key)
        hidden = hidden.reshape(*hidden.shape[:-3], -1)
        for index, width in enumerate(self.dense_units, start=len(self.conv_channels)):
            name = f"dense_{index - len(self.conv_channels)}"
            dense = _uniform_dense(width, hidden.shape[-1], name, use_bias)
            features[name] = hidden = apply_layer(dense, hidden, index)
            hidden = drop(hidden, index, dropout_rate, dropout_key)
        head = _uniform_dense(self.num_outputs, hidden.shape[-1], "head")
        return head(hidden), features

    def units(self) -> tuple[UnitGroup, ...]:
        """Returns all hidden layers as unit groups; empty for a linear model."""
        convolutions = [f"conv_{index}" for index in range(len(self.conv_channels))]
        dense = [f"dense_{index}" for index in range(len(self.dense_units))]
        names = (*convolutions, *dense)
        groups = sequential_units((*names, "head")) if names else ()
        return with_slopes(with_norms(groups, self.normalization), self.activation)

    def initializer(self) -> Initializer:
        """Returns the initializer of the hidden layers' weights."""
        return uniform_fan_in()


def _uniform_dense(
    width: int, fan_in: int, name: str, use_bias: bool = True
) -> nn.Module:
    return nn.Dense(
        width,
        use_bias,
        kernel_init=uniform_fan_in(),
        bias_init=uniform_fan_in(fan_in),
        name=name,
    )

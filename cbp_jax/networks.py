"""The paper's networks, as flax.linen modules that also return their activations."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax

from cbp_jax.initializers import kaiming_uniform, uniform_fan_in
from cbp_jax.layers.dropout import dropout
from cbp_jax.layers.normalization import normalization_named, normalize
from cbp_jax.layers.paired_activations import crelu, sin_cos
from cbp_jax.resets.units import Initializer, UnitGroup, sequential_units

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
"""Activations `[..., N] -> [..., N]`, or `[..., 2, N]` for those of `PAIRED`."""

# The gain that belongs to a paired activation. Two outputs double the fan-in, and half
# of their mean square is that of the input (CReLU, exactly) or 1 (sine and cosine), so
# with a gain of sqrt(2) mean squares stay from layer to layer.
PAIRED: Mapping[str, str] = MappingProxyType({"crelu": "relu", "sin_cos": "relu"})


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of that name.

    Raises:
      ValueError: unknown name; the message lists the choices.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {list(ACTIVATIONS)}, got {name!r}."
        )
    return ACTIVATIONS[name]


class MLP(nn.Module):
    """Multilayer perceptron of the paper's online problems.

    Layers are named `dense_0`, `dense_1` ... and `head`. Weights are Kaiming-uniform
    with the activation's gain (gain 1 for the head; that of ReLU for CReLU and deep
    Fourier features, see `PAIRED`), biases zero.

    A normalization stands in front of each activation: `dense_0`, `norm_0`, activation.
    One with a shift of its own takes the place of the layer's bias; "rms" has a scale
    only and takes no mean away, so there the bias stays, in front of it.

    "batch" and "online" have state beside the params, in collections of their own:
    `init` returns them, `apply` needs them, and a training step carries them, see
    `cbp_jax.layers.value_and_grad_with_state` and `cbp_jax.reset_statistics`.

    Attributes:
      hidden_units: width of each hidden layer, in order; empty for a linear model.
      num_outputs: number of outputs.
      activation: a name in `ACTIVATIONS`.
      normalization: "none", or a name in `cbp_jax.layers.NORMALIZATIONS`: "batch",
        "online", "layer" or "rms".
      normalization_options: attributes of its module that are not to be the default,
        for example `{"guard": "clip"}` of `cbp_jax.layers.OnlineNorm`.
    """

    hidden_units: Sequence[int]
    num_outputs: int
    activation: str = "relu"
    normalization: str = "none"
    normalization_options: Mapping[str, Any] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        dropout_rate: float | jax.Array = 0.0,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps inputs `[batch, inputs]` to outputs and features.

        Args:
          inputs: `[batch, inputs]`.
          dropout_rate: fraction of hidden activations to drop, may be traced.
          dropout_key: typed PRNG key; None drops nothing.
          train: whether normalizations use and update their statistics as training
            does, which needs `mutable`; False uses the running ones and changes
            nothing. Dropout depends on its key alone.

        Returns:
          Outputs `[batch, num_outputs]`, and a dict of the activations of each hidden
          layer, `[batch, units]`, by layer name, from before dropout. CReLU and deep
          Fourier features give `[batch, 2, units]`; how to measure these see
          `cbp_jax.layers.paired_activations`.

        Raises:
          ValueError: unknown activation or normalization; batch normalization of a
            single example in training.
        """
        activation = activation_function(self.activation)
        kernel_init = self.initializer()
        features = {}
        hidden = inputs
        for index, width in enumerate(self.hidden_units):
            name = f"dense_{index}"
            hidden = nn.Dense(
                width, self._has_bias(), kernel_init=kernel_init, name=name
            )(hidden)
            if self.normalization != "none":
                hidden = normalize(
                    self.normalization,
                    hidden,
                    train=train,
                    name=f"norm_{index}",
                    options=self.normalization_options,
                )
            features[name] = hidden = activation(hidden)
            if self.activation in PAIRED:
                hidden = hidden.reshape(*hidden.shape[:-2], -1)
            if dropout_key is not None:
                key = jax.random.fold_in(dropout_key, index)
                hidden = dropout(key, hidden, dropout_rate)
        head_init = kaiming_uniform("linear")
        return nn.Dense(self.num_outputs, kernel_init=head_init, name="head")(
            hidden
        ), features

    def units(self) -> tuple[UnitGroup, ...]:
        """Returns the hidden layers as unit groups; empty for a linear model."""
        names = [f"dense_{index}" for index in range(len(self.hidden_units))]
        groups = sequential_units((*names, "head")) if names else ()
        normalization = normalization_named(self.normalization)
        if normalization is None:
            return groups
        has_bias = self._has_bias()

        def with_norm(index: int, group: UnitGroup) -> UnitGroup:
            norm = f"norm_{index}"
            feeds_head = index == len(groups) - 1
            paths = tuple(f"{each}/{norm}" for each in normalization.collections)
            return group._replace(
                bias=group.bias if has_bias else None,
                outgoing_bias=group.outgoing_bias if has_bias or feeds_head else None,
                norm_scale=f"{norm}/scale",
                norm_bias=f"{norm}/bias" if normalization.has_shift else None,
                statistics=paths or None,
            )

        return tuple(with_norm(index, group) for index, group in enumerate(groups))

    def initializer(self) -> Initializer:
        """Returns the distribution of the hidden layers' weights."""
        return kaiming_uniform(PAIRED.get(self.activation, self.activation))

    def _has_bias(self) -> bool:
        """Whether hidden layers have a bias: a normalization's shift replaces it."""
        normalization = normalization_named(self.normalization)
        return normalization is None or not normalization.has_shift


class ConvNet(nn.Module):
    """The paper's network for Continual ImageNet.

    Convolutions `conv_0` (32 of 5x5), `conv_1` (64 of 3x3), `conv_2` (128 of 3x3),
    without padding, each followed by the activation and a 2x2 max-pool; then `dense_0`
    and `dense_1` of 128 units and `head`. Weights and biases are uniform within
    1 / sqrt(fan_in). A 32x32 image leaves a 2x2 map of 128 channels.

    Attributes:
      num_outputs: number of classes.
      activation: a name in `ACTIVATIONS`, not in `PAIRED`.
      conv_channels: channels of each convolution.
      conv_sizes: kernel sizes (height and width) of each convolution.
      dense_units: widths of the dense hidden layers.
      conv_general_dilated: replacement of `jax.lax.conv_general_dilated`, None for it.
    """

    num_outputs: int = 2
    activation: str = "relu"
    conv_channels: Sequence[int] = (32, 64, 128)
    conv_sizes: Sequence[int] = (5, 3, 3)
    dense_units: Sequence[int] = (128, 128)
    conv_general_dilated: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps images `[batch, height, width, channels]` to outputs and features.

        Returns:
          Outputs `[batch, num_outputs]`, and a dict of activations by layer name:
          `[batch, height, width, channels]` after pooling for convolutions,
          `[batch, units]` for dense layers.

        Raises:
          ValueError: unknown activation, or a paired one.
        """
        activation = activation_function(self.activation)
        if self.activation in PAIRED:
            raise ValueError(
                f"ConvNet has no activation {self.activation!r}, which gives two "
                "outputs for each unit; use it in an MLP, or 'relu' here."
            )
        features = {}
        hidden = images
        for index, (channels, size) in enumerate(
            zip(self.conv_channels, self.conv_sizes, strict=True)
        ):
            name = f"conv_{index}"
            convolution = nn.Conv(
                channels,
                (size, size),
                padding="VALID",
                kernel_init=uniform_fan_in(),
                bias_init=uniform_fan_in(size * size * hidden.shape[-1]),
                conv_general_dilated=self.conv_general_dilated,
                name=name,
            )
            hidden = nn.max_pool(activation(convolution(hidden)), (2, 2), (2, 2))
            features[name] = hidden
        hidden = hidden.reshape(*hidden.shape[:-3], -1)
        for index, width in enumerate(self.dense_units):
            name = f"dense_{index}"
            hidden = activation(_uniform_dense(width, hidden, name))
            features[name] = hidden
        return _uniform_dense(self.num_outputs, hidden, "head"), features

    def units(self) -> tuple[UnitGroup, ...]:
        """Returns all hidden layers as unit groups."""
        convolutions = [f"conv_{index}" for index in range(len(self.conv_channels))]
        dense = [f"dense_{index}" for index in range(len(self.dense_units))]
        return sequential_units((*convolutions, *dense, "head"))

    def initializer(self) -> Initializer:
        """Returns the distribution of the hidden layers' weights."""
        return uniform_fan_in()


def _uniform_dense(width: int, inputs: jax.Array, name: str) -> jax.Array:
    return nn.Dense(
        width,
        kernel_init=uniform_fan_in(),
        bias_init=uniform_fan_in(inputs.shape[-1]),
        name=name,
    )(inputs)

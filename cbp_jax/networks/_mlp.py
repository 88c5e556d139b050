"""The multilayer perceptron of the paper's online problems."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax

from cbp_jax._types import Initializer
from cbp_jax._units import UnitGroup, sequential_units
from cbp_jax.initializers import kaiming_uniform
from cbp_jax.layers._normalization import normalize
from cbp_jax.networks._activations import PAIRED, activate, check_activation
from cbp_jax.networks._hidden_layers import (
    drop,
    has_bias,
    norm_name,
    with_norms,
    with_slopes,
)


class MLP(nn.Module):
    """Multilayer perceptron of the paper's online problems.

    Layers are named `dense_0`, `dense_1` ... and `head`. Weights are Kaiming-uniform
    with the activation's gain (1 for the head; that of ReLU for CReLU and deep Fourier
    features, see `PAIRED`), and biases are zero.

    A normalization precedes each activation: `dense_0`, `norm_0`, activation. A
    normalization with a shift replaces the layer's bias. "rms" has only a scale and
    does not subtract the mean, so the layer keeps its bias.

    "batch" and "online" have state in collections of their own. `init` returns it,
    `apply` needs it, and a training step carries it; see
    `cbp_jax.layers.value_and_grad_with_state` and `cbp_jax.reset_statistics`.

    Attributes:
      hidden_units: width of each hidden layer, in order; empty for a linear model.
      num_outputs: number of outputs.
      activation: a name in `ACTIVATIONS` or `ACTIVATION_LAYERS`. Learned slopes are
        params `activation_0/slope`, `activation_1/slope` ...
      normalization: "none", or a name in `cbp_jax.layers.NORMALIZATIONS`: "batch",
        "online", "layer" or "rms".
      normalization_options: attributes of its module that differ from the defaults,
        such as `{"guard": "clip"}` for `cbp_jax.layers.OnlineNorm`.
      activation_options: options of an activation layer that differ from the defaults,
        such as `{"p": 0.9}` for `cbp_jax.layers.aid`. They may be traced if the module
        is built inside the traced function.
    """

    hidden_units: Sequence[int]
    num_outputs: int
    activation: str = "relu"
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
        """Maps inputs `[batch, inputs]` to outputs and features.

        Args:
          inputs: `[batch, inputs]`.
          dropout_rate: fraction of hidden activations to drop. May be traced.
          dropout_key: typed PRNG key; None drops nothing.
          train: whether normalizations use and update their statistics as in training,
            which requires `mutable`. False uses the running statistics and does not
            change them. Dropout and activations depend only on their keys.
          activation_key: typed PRNG key of random activations; None for evaluation.

        Returns:
          Outputs `[batch, num_outputs]`, and a dict from each hidden layer's name to
          its activations before dropout, `[batch, units]`. CReLU and deep Fourier
          features give `[batch, 2, units]`. Pass that to the fractions of units in
          `cbp_jax.metrics`, and `[batch, 2 * units]` to the ranks.

        Raises:
          ValueError: unknown activation or normalization; batch normalization of a
            single example in training.
        """
        check_activation(self.activation)
        use_bias = has_bias(self.normalization)
        features = {}
        hidden = inputs
        for index, width in enumerate(self.hidden_units):
            name = f"dense_{index}"
            hidden = nn.Dense(
                width, use_bias, kernel_init=self.initializer(), name=name
            )(hidden)
            hidden = normalize(
                self.normalization,
                hidden,
                train=train,
                name=norm_name(index),
                options=self.normalization_options,
            )
            features[name] = hidden = activate(
                self.activation,
                hidden,
                index,
                key=activation_key,
                options=self.activation_options,
            )
            if self.activation in PAIRED:
                hidden = hidden.reshape(*hidden.shape[:-2], -1)
            hidden = drop(hidden, index, dropout_rate, dropout_key)
        head_init = kaiming_uniform("linear")
        return nn.Dense(self.num_outputs, kernel_init=head_init, name="head")(
            hidden
        ), features

    def units(self) -> tuple[UnitGroup, ...]:
        """Returns the hidden layers as unit groups; empty for a linear model."""
        if not self.hidden_units:
            return ()
        names = [f"dense_{index}" for index in range(len(self.hidden_units))]
        groups = with_norms(sequential_units((*names, "head")), self.normalization)
        return with_slopes(groups, self.activation)

    def initializer(self) -> Initializer:
        """Returns the initializer of the hidden layers' weights."""
        return kaiming_uniform(PAIRED.get(self.activation, self.activation))

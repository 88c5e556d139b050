"""The paper's networks, as flax.linen modules that also return their activations.

They share one interface: `init(key, inputs)`; `apply(variables, inputs, dropout_rate,
dropout_key, train, activation_key)`, which returns outputs and features; `units()`, the
groups of hidden units; and `initializer()`, the distribution of new incoming weights.
"""

from cbp_jax.networks._activations import (
    ACTIVATION_LAYERS,
    ACTIVATIONS,
    PAIRED,
    ActivationLayer,
    activation_function,
    check_activation,
)
from cbp_jax.networks._conv_net import ConvNet
from cbp_jax.networks._convolution import (
    CONVOLUTIONS,
    convolution_named,
    patches_convolution,
)
from cbp_jax.networks._max_pooling import max_pool
from cbp_jax.networks._mlp import MLP

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_LAYERS",
    "CONVOLUTIONS",
    "MLP",
    "PAIRED",
    "ActivationLayer",
    "ConvNet",
    "activation_function",
    "check_activation",
    "convolution_named",
    "max_pool",
    "patches_convolution",
]

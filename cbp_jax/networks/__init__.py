"""The paper's networks, as flax.linen modules that also return their activations.

All have one interface: `init(key, inputs)`, `apply(variables, inputs, dropout_rate,
dropout_key, train)` for outputs and features, `units()` for the groups of hidden units,
`initializer()` for the distribution of their fresh weights.
"""

from cbp_jax.networks.activations import ACTIVATIONS as ACTIVATIONS
from cbp_jax.networks.activations import PAIRED as PAIRED
from cbp_jax.networks.activations import activation_function as activation_function
from cbp_jax.networks.conv_net import ConvNet as ConvNet
from cbp_jax.networks.mlp import MLP as MLP

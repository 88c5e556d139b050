"""Layers, and rivals of continual backprop that are layers."""

from cbp_jax.layers.convolution import CONVOLUTIONS as CONVOLUTIONS
from cbp_jax.layers.convolution import convolution_named as convolution_named
from cbp_jax.layers.convolution import patches_convolution as patches_convolution
from cbp_jax.layers.dropout import dropout as dropout
from cbp_jax.layers.gradients_with_state import BACKWARD_STATS as BACKWARD_STATS
from cbp_jax.layers.gradients_with_state import FORWARD_STATS as FORWARD_STATS
from cbp_jax.layers.gradients_with_state import (
    value_and_grad_with_state as value_and_grad_with_state,
)
from cbp_jax.layers.max_pooling import max_pool as max_pool
from cbp_jax.layers.normalization import NORMALIZATIONS as NORMALIZATIONS
from cbp_jax.layers.normalization import Normalization as Normalization
from cbp_jax.layers.normalization import normalize as normalize
from cbp_jax.layers.online_normalization import OnlineNorm as OnlineNorm
from cbp_jax.layers.online_normalization import (
    OnlineNormalizationState as OnlineNormalizationState,
)
from cbp_jax.layers.online_normalization import (
    init_online_normalization as init_online_normalization,
)
from cbp_jax.layers.online_normalization import layer_scaling as layer_scaling
from cbp_jax.layers.online_normalization import (
    online_normalization as online_normalization,
)
from cbp_jax.layers.paired_activations import crelu as crelu
from cbp_jax.layers.paired_activations import sin_cos as sin_cos

"""From a config to a network, and what methods must know about it."""

from collections.abc import Callable, Mapping, Sequence
import math
from types import MappingProxyType, SimpleNamespace
from typing import Any

from flax.core import FrozenDict

from cbp_jax import networks
from cbp_jax.initializers import GAINS
from cbp_jax.optimizers import uniform_fan_in_bound
from experiments.learning.checks import check_choice
from experiments.learning.hyperparameters import DECAY, Hyperparameter

NORMALIZATION_HYPERPARAMETERS: Mapping[str, Mapping[str, Hyperparameter]] = (
    MappingProxyType(
        {
            "none": {},
            "online": {
                "online_norm_forward_decay": Hyperparameter(
                    0.999, DECAY, None, "of online normalization's mean and variance"
                ),
                "online_norm_backward_decay": Hyperparameter(
                    0.99, DECAY, None, "of online normalization's control of gradients"
                ),
            },
            "batch": {},
            "layer": {},
            "rms": {},
        }
    )
)
"""What each normalization takes, by the name that `config.normalization` takes."""


def make_mlp(config: Any, num_outputs: int) -> networks.MLP:
    """Builds the MLP of `hidden_layers` layers of `hidden_units` units.

    Raises:
      ValueError: unknown activation or normalization, or a size that cannot be; no
        layers at all are a linear model.
    """
    if config.hidden_layers < 0 or config.hidden_units < 1:
        raise ValueError(
            "config.hidden_layers must be at least 0 and config.hidden_units at least "
            f"1, got {config.hidden_layers} and {config.hidden_units}."
        )
    networks.activation_function(config.activation)
    check_choice("normalization", config.normalization, NORMALIZATION_HYPERPARAMETERS)
    return networks.MLP(
        (config.hidden_units,) * config.hidden_layers,
        num_outputs,
        config.activation,
        config.normalization,
    )


def layer_sizes(
    params: Any, layers: Sequence[str], activation: str
) -> dict[str, list[int]]:
    """Counts what each layer has.

    Args:
      params: of the network, or their shapes.
      layers: names in forward order, the head last.
      activation: of the hidden layers.

    Returns:
      For each layer `num_weights`, the entries of its kernel, and `num_units` and
      `num_features`, its units and their outputs at each position, 0 for the head.
    """
    kernels = [params[layer]["kernel"] for layer in layers]
    num_units = [*(kernel.shape[-1] for kernel in kernels[:-1]), 0]
    outputs_per_unit = 2 if activation in networks.PAIRED else 1
    return {
        "num_weights": [kernel.size for kernel in kernels],
        "num_units": num_units,
        "num_features": [outputs_per_unit * number for number in num_units],
    }


def with_hyperparameters(network: Any, hyperparameters: SimpleNamespace) -> Any:
    """Gives a network the hyperparameters of its normalization, traced or not."""
    if network.normalization != "online":
        return network
    return network.clone(
        normalization_options=FrozenDict(
            forward_decay=hyperparameters.online_norm_forward_decay,
            backward_decay=hyperparameters.online_norm_backward_decay,
        )
    )


def weight_bounds(network: Any) -> Callable[[str, tuple[int, ...]], float]:
    """Returns the bounds of a network's initial weights, as `clip_weights` takes them.

    They are those of the uniform distributions of `cbp_jax.networks`: within
    gain * sqrt(3 / fan_in) in an MLP, within 1 / sqrt(fan_in) in the ConvNet.
    """
    if not isinstance(network, networks.MLP):
        return uniform_fan_in_bound
    hidden = networks.PAIRED.get(network.activation, network.activation)

    def bounds(path: str, kernel_shape: tuple[int, ...]) -> float:
        gain = GAINS["linear" if path.startswith("head/") else hidden]
        return gain * math.sqrt(3) * uniform_fan_in_bound(path, kernel_shape)

    return bounds

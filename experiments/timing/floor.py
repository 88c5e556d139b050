"""The least that a step must do: a network and SGD written by hand.

No stream, no measures, no transform; only the convolution and the max-pooling are those
of the library, which are the fastest known here on a CPU.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from cbp_jax import layers, networks
from experiments.timing.batches import scatter

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def has_floor(config: Any) -> bool:
    """Whether a case is plain enough: layers, activation, SGD, nothing in between."""
    return (
        config.normalization == "none"
        and config.activation not in networks.PAIRED
        and config.optimizer == "sgd"
    )


def made_up_params(like: Any, seed: jax.Array) -> Any:
    """Params of the shapes of `like`, of about the size that fresh ones have."""

    def make(leaf: Any) -> jax.Array:
        return scatter(leaf.shape, seed) / math.sqrt(math.prod(leaf.shape[:-1]))

    return jax.tree.map(make, like)


def make_update(config: Any, names: Sequence[str]) -> Callable[..., Any]:
    """Returns one update: forward, backward, SGD.

    Args:
      config: `activation`, `step_size`, `momentum`, and `convolution` if it has any.
      names: of the layers in forward order, the head last.

    Returns:
      `(carry, inputs, targets) -> carry`, where the carry is `(params, momenta)`, both
      trees of `kernel` and `bias` by layer, the latter `()` where momentum is 0.
    """
    activation = networks.activation_function(config.activation)

    def forward(params: Any, hidden: jax.Array) -> jax.Array:
        for name in names:
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            if kernel.ndim == 4:
                convolve = layers.convolution_named(config.convolution)
                hidden = convolve(
                    hidden, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT
                )
                hidden = layers.max_pool(activation(hidden + bias), (2, 2))
                continue
            hidden = hidden.reshape(hidden.shape[0], -1) @ kernel + bias
            if name != names[-1]:
                hidden = activation(hidden)
        return hidden

    def loss_of(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        outputs = forward(params, inputs)
        if outputs.shape[-1] == 1:
            return jnp.mean((outputs[:, 0] - targets) ** 2)
        chosen = jnp.take_along_axis(outputs, targets[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - chosen)

    def update(carry: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        params, momenta = carry
        grads = jax.grad(loss_of)(params, inputs, targets)
        if config.momentum:
            grads = momenta = jax.tree.map(
                lambda grad, momentum: grad + config.momentum * momentum, grads, momenta
            )
        params = jax.tree.map(
            lambda param, grad: param - config.step_size * grad, params, grads
        )
        return params, momenta

    return update

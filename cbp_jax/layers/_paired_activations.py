"""Activations that give two outputs for each unit.

Usually the two are concatenated along the last axis, as halves of a layer twice as
wide. Here the pair has its own axis before the units. Flattening it gives that
concatenation, while both outputs of a unit keep its index: for a `cbp_jax.UnitGroup`
they are two positions of one unit.

With `cbp_jax.metrics`, pass `[samples, 2, N]` to fractions of units, which judge a unit
by both outputs (a unit of `crelu` is dead only if its input is always 0). For measures
of a representation, such as its rank, use all outputs: `reshape(samples, 2 * N)`.

Shapes: N units.
"""

import jax
from jax import lax
import jax.numpy as jnp


def crelu(inputs: jax.Array) -> jax.Array:
    """Concatenated ReLU, `[relu(x), relu(-x)]`; its gradient never vanishes.

    Args:
      inputs: `[..., N]`.

    Returns:
      `[..., 2, N]`.

    Source: Shang et al., Understanding and improving convolutional neural networks via
    concatenated rectified linear units, ICML 2016; against loss of plasticity: Abbas et
    al., Loss of plasticity in continual deep reinforcement learning, CoLLAs 2023.
    """
    return jax.nn.relu(jnp.stack([inputs, -inputs], axis=-2))


@jax.custom_jvp
def sin_cos(inputs: jax.Array) -> jax.Array:
    """Deep Fourier features, `[sin(x), cos(x)]`: one of the two is nearly linear.

    Args:
      inputs: `[..., N]`.

    Returns:
      `[..., 2, N]`.

    Source: Lewandowski et al., Plastic learning with deep Fourier features, ICLR 2025.
    """
    return jnp.stack([jnp.sin(inputs), jnp.cos(inputs)], axis=-2)


@sin_cos.defjvp
def _sin_cos_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (inputs,), (change,) = primals, tangents
    # Each output is the other's derivative. With the barrier, XLA on a CPU computes
    # them once rather than for every product that uses them: 8 times faster in a small
    # MLP.
    outputs = lax.optimization_barrier(sin_cos(inputs))
    sin, cos = outputs[..., 0, :], outputs[..., 1, :]
    return outputs, jnp.stack([cos, -sin], axis=-2) * change[..., None, :]

"""Activations with a slope that each unit learns: PReLU and AdaLin.

The slope is a param of the unit. Name it as `slope` of its `cbp_jax.UnitGroup`, so that
a reset unit gets the slope of a new one.

Shapes: N units.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp


def prelu(inputs: jax.Array, slope: jax.Array) -> jax.Array:
    r"""ReLU with a learned slope below 0: x for x > 0, and slope * x below.

    With slope 0 it is ReLU. It equals `adalin` of ReLU.

    Args:
      inputs: `[..., N]`.
      slope: `[N]`.

    Returns:
      An array like `inputs`.

    Source: He et al., Delving deep into rectifiers, ICCV 2015, which starts at slope
    0.25; against loss of plasticity, with one slope for each unit that starts at 0:
    Rohani et al., see `adalin`.
    """
    return jax.nn.relu(inputs) - slope.astype(inputs.dtype) * jax.nn.relu(-inputs)


def adalin(
    inputs: jax.Array,
    slope: jax.Array,
    function: Callable[[jax.Array], jax.Array] = jnp.tanh,
    lipschitz: float = 1.0,
) -> jax.Array:
    r"""Adds a learned linear part to an activation where that is saturated.

    .. math::
      \phi(x) + \alpha_i x g(x), \qquad
      g(x) = \cos\Big(\frac{\pi}{2} \frac{|\phi'(x)|}{L}\Big)

    The gate g is 1 where :math:`\phi` is flat and 0 where it is steepest. No gradient
    flows through it. With slope 0 it is :math:`\phi`.

    Args:
      inputs: `[..., N]`.
      slope: :math:`\alpha`, `[N]`, initially 0.
      function: :math:`\phi`, elementwise.
      lipschitz: L, the largest slope of :math:`\phi`: 1 for tanh and ReLU, 1/4 for the
        sigmoid.

    Returns:
      An array like `inputs`.

    Source: Rohani et al., Preserving plasticity in continual learning with adaptive
    linearity injection, arXiv:2505.09486, CoLLAs 2025.
    """
    outputs, derivative = jax.jvp(function, (inputs,), (jnp.ones_like(inputs),))
    gate = lax.stop_gradient(jnp.cos(jnp.pi / 2 * jnp.abs(derivative) / lipschitz))
    return outputs + slope.astype(inputs.dtype) * inputs * gate

"""InFeR: random linear functions of the features keep their scaled initial values."""

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax.initializers import uniform_fan_in


def infer(
    features: jax.Array,
    initial_features: jax.Array,
    heads: jax.Array,
    initial_heads: jax.Array,
    *,
    scale: float | jax.Array = 100.0,
) -> jax.Array:
    r"""Initial feature regularization.

    .. math::
      \frac{1}{k} \sum_{i=1}^k \frac{1}{B} \sum_{b=1}^B
      \big( g_i(x_b; \theta) - \beta \, g_i(x_b; \theta_0) \big)^2,
      \qquad g_i(x; \theta) = w_i^\top \phi(x; \theta)

    with the features :math:`\phi` of the last hidden layer and k random heads
    :math:`w_i`, which are trained like all params. Keep the params and heads that
    training started from. (The paper sums over the heads; the mean is that of the
    implementation named below.)

    Args:
      features: :math:`\phi(x; \theta)`, `[B, N]`.
      initial_features: :math:`\phi(x; \theta_0)` of the same inputs, `[B, N]`; no
        gradient flows into them.
      heads: `[N, k]`.
      initial_heads: the heads at the start, `[N, k]`; no gradient flows into them.
      scale: :math:`\beta`, published 100.

    Returns:
      Scalar. The published strength is 0.1.

    References:
      Lyle, Rowland and Dabney, `Understanding and preventing capacity loss in
      reinforcement learning <https://arxiv.org/abs/2204.09560>`_, 2022;
      https://github.com/timoklein/infer.
    """
    predictions = as_float(features) @ as_float(heads)
    targets = as_float(initial_features) @ as_float(initial_heads)
    targets = jax.lax.stop_gradient(jnp.asarray(scale, targets.dtype) * targets)
    return jnp.mean(jnp.square(predictions - targets))


def infer_heads(key: jax.Array, num_features: int, num_heads: int = 10) -> jax.Array:
    r"""Draws the heads of `infer`, uniform within :math:`\pm 1 / \sqrt N`.

    Args:
      key: PRNG key.
      num_features: N.
      num_heads: k, published 10.

    Returns:
      Float32 `[N, k]`.
    """
    return uniform_fan_in()(key, (num_features, num_heads), jnp.float32)

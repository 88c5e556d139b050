"""Churn: how much an update changes the outputs on other inputs."""

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, check_choice


def churn(
    outputs: jax.Array, earlier_outputs: jax.Array, *, kind: str = "cross_entropy"
) -> jax.Array:
    r"""Distance of outputs from those of earlier params on the same inputs.

    .. math::
      -\frac{1}{B} \sum_{b=1}^B \sum_c
      \operatorname{softmax}(z^\text{old}_b)_c
      \log \operatorname{softmax}(z_b)_c

    for logits z, or the mean of :math:`(z - z^\text{old})^2` for values. The gradient
    of the cross-entropy is that of the Kullback-Leibler divergence. C-CHAIN adds it on
    inputs other than those of the present batch, with the params from before the last
    update as the earlier ones::

      def churn_loss(params, previous_params, other_images):
          outputs, _ = network.apply({"params": params}, other_images)
          earlier, _ = network.apply({"params": previous_params}, other_images)
          return cbp_jax.losses.churn(outputs, earlier)

    The authors set the strength so that the churn stays a given share of the task's
    loss: the share times the running mean of the task's loss, divided by that of the
    churn.

    Args:
      outputs: `[B, num_outputs]` of the present params.
      earlier_outputs: `[B, num_outputs]`; no gradient flows into them.
      kind: "cross_entropy" for logits, "squared_error" for values.

    Returns:
      Scalar.

    Raises:
      ValueError: the kind is unknown.

    References:
      Tang et al., `Mitigating plasticity loss in continual reinforcement learning by
      reducing churn <https://arxiv.org/abs/2506.00592>`_, 2025.
    """
    check_choice("kind", kind, ("cross_entropy", "squared_error"))
    outputs = as_float(outputs)
    earlier = jax.lax.stop_gradient(as_float(earlier_outputs))
    if kind == "squared_error":
        return jnp.mean(jnp.square(outputs - earlier))
    terms = jax.nn.softmax(earlier) * jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.sum(terms, axis=-1))

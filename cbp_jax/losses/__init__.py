"""Losses against loss of plasticity, to add to the loss of a task.

Each is a pure function of params, features or outputs that returns a scalar. Add it,
times a strength, to the loss that you differentiate::

  def loss_fn(params):
      logits, features = network.apply({"params": params}, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean() + 1e-3 * cbp_jax.losses.feature_norm(features)

All work under `jax.jit`, `jax.vmap` and `jax.grad`. They compute in float32, or in
float64 if an input is float64, and return a scalar of that dtype; gradients have the
dtypes of their inputs. Losses of params alone are also optax transformations in
`cbp_jax.optimizers`, which keep the initial params for you.

Shapes: B batch, M samples, N units.
"""

from cbp_jax.losses._churn import churn
from cbp_jax.losses._distance_to_init import huber_to_init, l1_to_init
from cbp_jax.losses._effective_rank import negative_effective_rank
from cbp_jax.losses._feature_norm import feature_norm
from cbp_jax.losses._infer import infer, infer_heads
from cbp_jax.losses._isometry import isometry
from cbp_jax.losses._parseval import parseval
from cbp_jax.losses._wasserstein_to_init import wasserstein_to_init

__all__ = [
    "churn",
    "feature_norm",
    "huber_to_init",
    "infer",
    "infer_heads",
    "isometry",
    "l1_to_init",
    "negative_effective_rank",
    "parseval",
    "wasserstein_to_init",
]

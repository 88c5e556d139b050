"""Wasserstein distance of each tensor's entries from those of its initial values."""

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import PyTree
from cbp_jax.losses._sums import add_up


def wasserstein_to_init(params: PyTree, initial_params: PyTree) -> jax.Array:
    r"""Distance of each tensor's distribution of entries from the initial one.

    .. math::
      \sum_\theta \frac{1}{n_\theta} \sum_{i=1}^{n_\theta}
      \big( \theta_{(i)} - \theta_{0, (i)} \big)^2

    over the tensors of the params, with :math:`n_\theta` entries each, where
    :math:`\theta_{(i)}` is the i-th smallest entry. This is the squared 2-Wasserstein
    distance of the empirical distributions. A weight may move freely, as long as
    another takes its place.

    Args:
      params: any pytree of arrays.
      initial_params: like the params; no gradient flows into them.

    Returns:
      Scalar. The published strengths are 1e-2 to 1e-5.

    References:
      Lewandowski et al., `Directions of curvature as an explanation for loss of
      plasticity <https://arxiv.org/abs/2312.00246>`_, 2023.
    """

    def term(param: jax.Array, initial: jax.Array) -> jax.Array:
        initial = jax.lax.stop_gradient(sorted_entries(initial))
        return jnp.mean(jnp.square(sorted_entries(param) - initial))

    return add_up(jax.tree.leaves(jax.tree.map(term, params, initial_params)))


def sorted_entries(tensor: jax.Array) -> jax.Array:
    """Returns the entries of a tensor in ascending order, `[size]`."""
    return jnp.sort(as_float(tensor).ravel())

"""Effective rank of features, with a gradient that is finite at any rank."""

import functools

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float
from cbp_jax._types import PyTree
from cbp_jax._xla import one_by_one_on_cpu
from cbp_jax.losses._features import arrays_of_layers

_svd = one_by_one_on_cpu(functools.partial(jnp.linalg.svd, full_matrices=False))


def negative_effective_rank(features: PyTree, *, epsilon: float = 1e-8) -> jax.Array:
    r"""Minus the mean effective rank of the layers' features.

    .. math::
      -\frac{1}{L} \sum_{l=1}^L
      \exp\Big( -\sum_k p_{l k} \log (p_{l k} + \epsilon) \Big), \qquad
      p_{l k} = \frac{\sigma_k(H_l)}{\sum_j \sigma_j(H_l)}

    with the singular values :math:`\sigma_k` of the features :math:`H_l`, `[M, N]`.
    Each layer's rank is that of `cbp_jax.metrics.effective_rank`, up to
    :math:`\epsilon`. Its gradient with respect to H is

    .. math::
      \frac{\text{erank}}{\sum_j \sigma_j} \; U \operatorname{diag}\Big(
      \sum_j p_j d_j - d_k \Big) V^\top, \qquad
      d_k = \log(p_k + \epsilon) + \frac{p_k}{p_k + \epsilon}.

    Without :math:`\epsilon` it would be infinite where a singular value is 0. Singular
    vectors of equal singular values are not unique, nor is the gradient then; every
    choice increases the rank. Features that are all 0 have rank 0 and gradient 0.

    L2-ER takes one gradient step on this loss after every K mini-batches, on the
    features of all their inputs, besides L2 on the task's loss. The number of samples M
    bounds the rank, so a single small batch says little.

    Args:
      features: pytree of activations `[..., N]`, one array for each layer, which become
        matrices `[M, N]`. Reshape maps and paired activations yourself if not all
        leading axes are samples.
      epsilon: :math:`\epsilon`, the authors' 1e-8.

    Returns:
      Scalar, in units.

    Raises:
      ValueError: there are no features.

    References:
      Prakash, He, Guo et al., `Spectral collapse drives loss of plasticity in deep
      continual learning <https://arxiv.org/abs/2509.22335>`_, 2026.
    """
    layers = arrays_of_layers("negative_effective_rank", features)
    ranks = [
        _effective_rank(as_float(layer).reshape(-1, layer.shape[-1]), epsilon)
        for layer in layers
    ]
    return -jnp.mean(jnp.stack(ranks))


def _effective_rank(matrix: jax.Array, epsilon: float) -> jax.Array:
    values = _singular_values(matrix)
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1)
    rank = jnp.exp(-jnp.sum(share * jnp.log(share + epsilon)))
    return jnp.where(total > 0, rank, jax.lax.stop_gradient(total))


# The derivative that JAX knows takes a batch of matrices in one call, which
# `one_by_one_on_cpu` avoids.
@jax.custom_jvp
def _singular_values(matrix: jax.Array) -> jax.Array:
    return _svd(matrix)[1]


@_singular_values.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    u, values, v = _svd(*primals)
    return values, jnp.einsum("mk,mn,kn->k", u, *tangents, v)

"""Spectral regularization: keeps each kernel's largest singular value near 1."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, check_params, check_range, widen
from cbp_jax._trees import is_kernel
from cbp_jax._types import PyTree
from cbp_jax._units import LeafPath, leaf_paths


class SpectralRegularizationState(NamedTuple):
    """State of `spectral_regularization`."""

    # Like the params: for a kernel [..., fan_in, fan_out] its unit vector v, [fan_out]
    # in at least float32; for any other leaf a zero, [1].
    vectors: PyTree


def spectral_regularization(
    strength: float | jax.Array,
    *,
    exponent: float | jax.Array = 2,
    gain_name: str | Sequence[str] = ("scale", "weight"),
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of a penalty on the spectral norms of all layers.

    .. math::
      \lambda \Big[ \sum_W \big(\sigma(W)^k - 1\big)^2 + \sum_b \|b\|_2^{2 k}
        + \sum_\gamma \|\gamma - 1\|_2^2 \Big]

    over kernels W, biases b and gains :math:`\gamma` of normalizations. One power
    iteration per update estimates the largest singular value
    :math:`\sigma(W) = u^\top W v`, starting from the previous v:

    .. math::
      u \leftarrow \frac{W v}{\|W v\|}, \qquad
      v \leftarrow \frac{W^\top u}{\|W^\top u\|}.

    The gradient treats u and v as constants:
    :math:`\partial \sigma / \partial W = u v^\top`. A kernel with more than two axes is
    treated as the matrix `[..., fan_in] x [fan_out]`. The first v is random, so
    :math:`\sigma` is too small in the first updates. Put it before the optimizer::

      tx = optax.chain(
          cbp_jax.optimizers.spectral_regularization(1e-3, key=key), optax.adam(1e-3)
      )

    A bias is treated as a matrix with one row, whose singular value is its norm. For
    gains the paper gives only the target 1; the form of their penalty is our choice.

    Args:
      strength: :math:`\lambda`, published 1e-4 to 1e-3. 0 does not change the updates,
        bit for bit.
      exponent: k, at least 1; published 2.
      gain_name: last key of a gain's path, or several such keys. The defaults are those
        of flax and Haiku, and of Equinox. All other leaves that are not kernels count
        as biases.
      key: PRNG key of the first v. Under `vmap`, "rbg" keys make a lane depend on its
        neighbors; see `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation with state `SpectralRegularizationState`. Its update needs
      the params.

    Raises:
      ValueError: `exponent` is below 1, or the update gets no params.

    References:
      Lewandowski et al., `Learning continually by spectral regularization
      <https://arxiv.org/abs/2406.06811>`_, 2024.
    """
    check_range("exponent", exponent, 1, math.inf)
    gains = (gain_name,) if isinstance(gain_name, str) else tuple(gain_name)

    def init(params: PyTree) -> SpectralRegularizationState:
        leaves, treedef = jax.tree.flatten(params)
        vectors = [
            _first_vector(jax.random.fold_in(key, index), path, leaf)
            for index, (path, leaf) in enumerate(
                zip(leaf_paths(params), leaves, strict=True)
            )
        ]
        return SpectralRegularizationState(treedef.unflatten(vectors))

    def update(
        updates: PyTree,
        state: SpectralRegularizationState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SpectralRegularizationState]:
        del extra_args
        check_params("spectral_regularization", params)

        def add_penalty(
            path: LeafPath, update: jax.Array, param: jax.Array, vector: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            dtype = vector.dtype
            update = widen(update, param)
            k, param = jnp.asarray(exponent, dtype), param.astype(dtype)
            if is_kernel(path, param):
                grad, vector = _kernel_gradient(param, vector, k)
            elif path.last_key in gains:
                grad = 2 * (param - 1)
            else:
                grad = 2 * k * jnp.sum(jnp.square(param)) ** (k - 1) * param
            factor = jnp.asarray(strength, dtype)
            added = (update.astype(dtype) + factor * grad).astype(update.dtype)
            # A diverged penalty times 0 would be NaN.
            return jnp.where(factor == 0, update, added), vector

        treedef = jax.tree.structure(params)
        pairs = [
            add_penalty(*leaves)
            for leaves in zip(
                leaf_paths(params),
                *(jax.tree.leaves(tree) for tree in (updates, params, state.vectors)),
                strict=True,
            )
        ]
        updates = treedef.unflatten([update for update, _ in pairs])
        vectors = treedef.unflatten([vector for _, vector in pairs])
        return updates, SpectralRegularizationState(vectors)

    return optax.GradientTransformationExtraArgs(init, update)


def _first_vector(key: jax.Array, path: LeafPath, leaf: jax.Array) -> jax.Array:
    dtype = at_least_float32(leaf.dtype)
    if not is_kernel(path, leaf):
        return jnp.zeros(1, dtype)
    vector = jax.random.normal(key, leaf.shape[-1:], dtype)
    return vector / jnp.linalg.norm(vector)


def _kernel_gradient(
    kernel: jax.Array, v: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient, like the kernel, and the next v [fan_out]."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    u = _normalize(matrix @ v)
    right = u @ matrix
    sigma = jnp.linalg.norm(right)  # u W v for the next v.
    # A v of 0 would stay 0 in all further iterations.
    v = jnp.where(sigma > 0, _normalize(right), v)
    slope = 2 * (sigma**k - 1) * k * sigma ** (k - 1)
    return (slope * jnp.outer(u, v)).reshape(kernel.shape), v


def _normalize(vector: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0, length, 1)

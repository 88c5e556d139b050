"""Online shrink and perturb: L2, and noise after every update."""

from collections.abc import Callable, Mapping
import functools
import math
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from cbp_jax._numbers import (
    at_least_float32,
    check_choice,
    check_params,
    key_bits,
    key_of,
    widen,
)
from cbp_jax._types import PyTree


class PerturbState(NamedTuple):
    """State of `perturb`."""

    rng_key: jax.Array  # Bits of a key, uint32; split at every update.


def random_signs(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Draws -1 or 1 with equal probability, each from a single random bit.

    This is cheap noise for `perturb`, with mean 0 and variance 1. Summed over some
    dozens of updates, it cannot be distinguished from normal noise. Normal numbers take
    32 bits each, which for a small network cost more than the rest of an update.

    Args:
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.
      shape: shape of the result.
      dtype: dtype of the result.

    Returns:
      An array of that shape and dtype.
    """
    *leading, num_columns = shape or (1,)
    num_rows = math.prod(leading)
    # One word for 32 rows of a column: with a flat layout, XLA on a CPU takes twice as
    # long.
    words = jax.random.bits(key, (-(-num_rows // 32), 1, num_columns), jnp.uint32)
    bits = words >> jnp.arange(32, dtype=jnp.uint32)[None, :, None] & 1
    signs = 2 * bits.astype(jnp.int32) - 1
    return signs.reshape(-1, num_columns)[:num_rows].reshape(shape).astype(dtype)


NOISES: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {"normal": jax.random.normal, "signs": random_signs}
)
"""Noise with mean 0 and variance 1, by name: `(key, shape, dtype) -> array`."""


def perturb(
    noise_scale: float | jax.Array,
    *,
    key: jax.Array,
    noise: str = "normal",
) -> optax.GradientTransformationExtraArgs:
    r"""Adds :math:`N(0, \sigma^2)` noise to every param at every update.

    Put it last in a chain: a learning rate after it would scale the noise. After
    `optax.add_decayed_weights` and an optimizer, this is the shrink and perturb of the
    paper's experiments; see `shrink_and_perturb`.

    Args:
      noise_scale: :math:`\sigma`, standard deviation of the noise. 0 does not change
        the updates, bit for bit.
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.
      noise: "normal", or "signs" for random signs times :math:`\sigma`. These are many
        times faster and, summed over some dozens of updates, cannot be distinguished
        from normal noise.

    Returns:
      An optax transformation with state `PerturbState`.

    Raises:
      ValueError: unknown `noise`.
    """
    check_choice("noise", noise, NOISES)

    def init(params: PyTree) -> PerturbState:
        del params
        return PerturbState(key_bits(key))

    def update(
        updates: PyTree,
        state: PerturbState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PerturbState]:
        del extra_args
        next_key, noise_key = jax.random.split(key_of(state.rng_key, key))

        def add_noise(update: jax.Array, param: jax.Array, key: jax.Array) -> jax.Array:
            update = widen(update, param)
            dtype = at_least_float32(update.dtype)
            drawn = NOISES[noise](key, update.shape, dtype)
            sigma = jnp.asarray(noise_scale, dtype)
            return (update.astype(dtype) + sigma * drawn).astype(update.dtype)

        updates = jax.tree.map(
            add_noise,
            updates,
            updates if params is None else params,
            optax.tree.split_key_like(noise_key, updates),
        )
        return updates, PerturbState(key_bits(next_key))

    return optax.GradientTransformationExtraArgs(init, update)


def shrink_and_perturb(
    base_optimizer: optax.GradientTransformation,
    *,
    weight_decay: float | jax.Array,
    noise_scale: float | jax.Array,
    key: jax.Array,
    noise: str = "normal",
) -> optax.GradientTransformationExtraArgs:
    """Adds L2 to the gradient, and noise to all params after every update.

    This is the online form that the paper compares with. The original method by Ash and
    Adams shrinks and perturbs once before each new task; see
    `shrink_and_perturb_at_events`.

    Args:
      base_optimizer: any optax transformation.
      weight_decay: L2 factor: this times the params is added to the gradient.
      noise_scale: standard deviation of the noise. With both 0 the updates are those of
        the base optimizer, bit for bit.
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.
      noise: see `perturb`.

    Returns:
      An optax transformation. Its update needs the params.

    Raises:
      ValueError: the update gets no params.

    References:
      Ash and Adams, `On warm-starting neural network training
      <https://arxiv.org/abs/1910.08475>`_, 2020; Dohare et al.,
      `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_, 2023.
    """
    return optax.chain(
        optax.stateless(functools.partial(_add_l2, weight_decay)),
        base_optimizer,
        perturb(noise_scale, key=key, noise=noise),
    )


def _add_l2(
    weight_decay: float | jax.Array, updates: PyTree, params: PyTree | None
) -> PyTree:
    check_params("shrink_and_perturb", params)

    def add(update: jax.Array, param: jax.Array) -> jax.Array:
        update = widen(update, param)
        dtype = at_least_float32(update.dtype)
        pull = jnp.asarray(weight_decay, dtype) * param.astype(dtype)
        return (update.astype(dtype) + pull).astype(update.dtype)

    return jax.tree.map(add, updates, params)

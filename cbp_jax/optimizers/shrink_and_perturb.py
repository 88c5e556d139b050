"""Shrink and perturb in its online form: L2, and noise after every update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax.resets.units import PyTree


class PerturbState(NamedTuple):
    """State of `perturb`."""

    rng_key: jax.Array  # Typed key, split at every update.


def perturb(
    noise_scale: float | jax.Array, *, key: jax.Array
) -> optax.GradientTransformation:
    r"""Adds :math:`N(0, \sigma^2)` noise to every param at every update.

    The last link of a chain: noise added before a learning rate is scaled by it. Behind
    `optax.add_decayed_weights` and an optimizer this is the shrink and perturb of the
    paper's experiments, see `shrink_and_perturb`.

    Args:
      noise_scale: :math:`\sigma`, standard deviation of the noise.
      key: typed PRNG key.

    Returns:
      An optax transformation.
    """

    def init(params: PyTree) -> PerturbState:
        del params
        return PerturbState(jnp.copy(key))

    def update(
        updates: PyTree, state: PerturbState, params: PyTree | None = None
    ) -> tuple[PyTree, PerturbState]:
        del params
        next_key, key = jax.random.split(state.rng_key)
        noise = optax.tree.random_like(key, updates)
        updates = jax.tree.map(
            lambda update, noise: (update + noise_scale * noise).astype(update.dtype),
            updates,
            noise,
        )
        return updates, PerturbState(next_key)

    return optax.GradientTransformation(init, update)


def shrink_and_perturb(
    base_optimizer: optax.GradientTransformation,
    *,
    weight_decay: float | jax.Array,
    noise_scale: float | jax.Array,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """L2 in the gradient and noise on all params after every update.

    The online form that the paper compares with. The original, Ash and Adams, shrinks
    and perturbs once before each new task.

    Args:
      base_optimizer: any optax transformation.
      weight_decay: L2 factor, times the params added to the gradient.
      noise_scale: standard deviation of the noise.
      key: typed PRNG key.

    Returns:
      An optax transformation; its update needs the params.

    References:
      Ash and Adams, `On warm-starting neural network training
      <https://arxiv.org/abs/1910.08475>`_, 2020; Dohare et al.,
      `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_, 2023.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        base_optimizer,
        perturb(noise_scale, key=key),
    )

"""Adaptive UPGD: Adam's steps with noise, where useful weights move less."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import (
    at_least_float32,
    average_weight,
    check_params,
    key_bits,
    key_of,
    widen,
)
from cbp_jax._types import PyTree
from cbp_jax.optimizers._shrink_and_perturb import NOISES
from cbp_jax.optimizers._upgd import average_utility, divide_by_maximum


class AdaUPGDState(NamedTuple):
    """State of `ada_upgd`. All trees are like the params, in at least float32."""

    count: jax.Array  # int32 scalar, updates so far.
    mu: PyTree  # Adam's first moments.
    nu: PyTree  # Adam's second moments.
    utility: PyTree  # U.
    rng_key: jax.Array  # Bits of a key, uint32; split at every update.


def ada_upgd(
    learning_rate: optax.ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-5,
    *,
    decay_rate: float | jax.Array = 0.999,
    noise_scale: float | jax.Array = 1e-3,
    weight_decay: float | jax.Array = 1e-3,
    protecting: bool = True,
    uncorrected_maximum: bool = False,
    key: jax.Array,
    noise: str = "normal",
) -> optax.GradientTransformationExtraArgs:
    r"""UPGD with the direction of Adam in place of the gradient, and twice the step.

    With the scaled utility s of `upgd` and the corrected moments
    :math:`\hat \mu = \mu / (1 - \beta_1^t)` and
    :math:`\hat \nu = \nu / (1 - \beta_2^t)` of Adam,

    .. math::
      \theta \leftarrow (1 - \alpha \lambda) \theta - 2 \alpha
      \Big(\frac{\hat \mu}{\sqrt{\hat \nu} + \epsilon} + \xi\Big) (1 - s), \qquad
      \xi \sim N(0, \sigma^2) .

    A weight of no use has :math:`s = 1/2`; the factor 2 gives it the step of Adam.
    `protecting=False` scales only the noise by :math:`1 - s`. This is a complete
    optimizer.

    In the base optimizer of a transformation that resets units, moments and utilities
    of a reset unit become 0. Its first steps are several times as long as Adam's at
    birth, because the count is that of all weights.

    Args:
      learning_rate: :math:`\alpha`, or a schedule of the count of updates.
      b1: :math:`\beta_1`, decay rate of the first moments.
      b2: :math:`\beta_2`, decay rate of the second moments.
      eps: :math:`\epsilon`.
      decay_rate: decay rate of the average utilities.
      noise_scale: :math:`\sigma`. With 0, and without `protecting` and weight decay,
        the updates are those of Adam at twice the learning rate.
      weight_decay: :math:`\lambda`, decoupled from the gradient; 0 for none.
      protecting: scale Adam's direction and the noise; False scales only the noise.
      uncorrected_maximum: see `upgd`.
      key: PRNG key of the noise. Under `vmap`, "rbg" keys make a lane depend on its
        neighbors; see `cbp_jax.continual_backprop`.
      noise: "normal" or "signs"; see `cbp_jax.optimizers.perturb`.

    Returns:
      An optax transformation with state `AdaUPGDState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params.

    References:
      Elsayed and Mahmood, `Addressing loss of plasticity and catastrophic forgetting in
      continual learning <https://arxiv.org/abs/2404.00781>`_, 2024;
      `core/run/rl/adaupgd.py` of their code, which has `uncorrected_maximum=True`.
    """

    def init(params: PyTree) -> AdaUPGDState:
        def zeros() -> PyTree:
            return jax.tree.map(
                lambda leaf: jnp.zeros_like(leaf, at_least_float32(leaf.dtype)), params
            )

        return AdaUPGDState(
            count=jnp.zeros((), jnp.int32),
            mu=zeros(),
            nu=zeros(),
            utility=zeros(),
            rng_key=key_bits(key),
        )

    def update(
        updates: PyTree,
        state: AdaUPGDState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AdaUPGDState]:
        del extra_args
        check_params("ada_upgd", params)
        count = optax.safe_increment(state.count)
        utility = jax.tree.map(
            functools.partial(average_utility, decay_rate),
            state.utility,
            updates,
            params,
        )
        ratio = divide_by_maximum(utility, count, decay_rate, uncorrected_maximum)
        mu = jax.tree.map(functools.partial(_average_power, b1, 1), state.mu, updates)
        nu = jax.tree.map(functools.partial(_average_power, b2, 2), state.nu, updates)
        next_key, noise_key = jax.random.split(key_of(state.rng_key, key))
        drawn = optax.tree.random_like(noise_key, utility, NOISES[noise])
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def step(
            grad: jax.Array,
            param: jax.Array,
            mu: jax.Array,
            nu: jax.Array,
            ratio: jax.Array,
            drawn: jax.Array,
        ) -> jax.Array:
            dtype = ratio.dtype
            alpha, decay, sigma = (
                jnp.asarray(number, dtype)
                for number in (rate, weight_decay, noise_scale)
            )
            first = mu / average_weight(count, b1, dtype)
            second = jnp.sqrt(nu / average_weight(count, b2, dtype))
            direction = first / (second + jnp.asarray(eps, dtype))
            openness = jax.nn.sigmoid(-ratio)  # 1 - s
            if protecting:
                direction = direction * openness
            direction = direction + sigma * drawn * openness
            shrinkage = alpha * decay * param.astype(dtype)
            return (-2 * alpha * direction - shrinkage).astype(widen(grad, param).dtype)

        updates = jax.tree.map(step, updates, params, mu, nu, ratio, drawn)
        return updates, AdaUPGDState(count, mu, nu, utility, key_bits(next_key))

    return optax.GradientTransformationExtraArgs(init, update)


def _average_power(
    decay_rate: float | jax.Array, power: int, average: jax.Array, grad: jax.Array
) -> jax.Array:
    decay = jnp.asarray(decay_rate, average.dtype)
    return (1 - decay) * grad.astype(average.dtype) ** power + decay * average

"""Utility-based perturbed gradient descent: useful weights move less."""

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


class UPGDState(NamedTuple):
    """State of `upgd`."""

    count: jax.Array  # int32 scalar, updates so far.
    utility: PyTree  # U, like the params, in at least float32.
    rng_key: jax.Array  # Bits of a key, uint32; split at every update.


def upgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay_rate: float | jax.Array = 0.999,
    noise_scale: float | jax.Array,
    weight_decay: float | jax.Array = 0.0,
    protecting: bool = True,
    uncorrected_maximum: bool = False,
    key: jax.Array,
    noise: str = "normal",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with noise, both scaled down for useful weights.

    This is the first-order variant with global scaling. The utility of a weight
    estimates how much the loss would increase without it:

    .. math::
      U &\leftarrow \beta U + (1 - \beta)(-g \theta), \qquad
      \hat U = \frac{U}{1 - \beta^t}, \qquad
      s = \operatorname{sigmoid}\Big(\frac{\hat U}{\max \hat U}\Big) \\
      \theta &\leftarrow (1 - \alpha \lambda) \theta - \alpha (g + \xi)(1 - s), \qquad
      \xi \sim N(0, \sigma^2)

    The maximum is over all params and keeps its sign: if all utilities are negative,
    the lowest counts as the most useful, as published. If it is 0, s is 1/2 everywhere.
    `protecting=False` scales only the noise, :math:`-\alpha (g + \xi (1 - s))`. This is
    a complete optimizer::

      tx = cbp_jax.optimizers.upgd(1e-2, noise_scale=1e-3, key=key)

    Args:
      learning_rate: :math:`\alpha`, or a schedule of the count of updates.
      decay_rate: :math:`\beta`, of the average utilities; published 0.9 to 0.9999.
      noise_scale: :math:`\sigma`, published 1e-3 to 1e-1. 0 adds no noise; without
        `protecting` and weight decay, the updates are then those of `optax.sgd`.
      weight_decay: :math:`\lambda`, decoupled from the gradient; 0 for none.
      protecting: scale the gradient and the noise; False scales only the noise.
      uncorrected_maximum: divide by the maximum of :math:`U`, as the authors' code
        does, which brings s closer to 0 and 1 in the first :math:`1 / (1 - \beta)`
        updates. False divides by the maximum of :math:`\hat U`, as in the paper.
      key: PRNG key of the noise. Under `vmap`, "rbg" keys make a lane depend on its
        neighbors; see `cbp_jax.continual_backprop`.
      noise: "normal" or "signs"; see `cbp_jax.optimizers.perturb`.

    Returns:
      An optax transformation with state `UPGDState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params.

    References:
      Elsayed and Mahmood, `Addressing loss of plasticity and catastrophic forgetting in
      continual learning <https://arxiv.org/abs/2404.00781>`_, 2024.
    """

    def init(params: PyTree) -> UPGDState:
        return UPGDState(
            count=jnp.zeros((), jnp.int32),
            utility=jax.tree.map(
                lambda leaf: jnp.zeros_like(leaf, at_least_float32(leaf.dtype)), params
            ),
            rng_key=key_bits(key),
        )

    def update(
        updates: PyTree,
        state: UPGDState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, UPGDState]:
        del extra_args
        check_params("upgd", params)
        count = optax.safe_increment(state.count)
        utility = jax.tree.map(
            functools.partial(average_utility, decay_rate),
            state.utility,
            updates,
            params,
        )
        ratio = divide_by_maximum(utility, count, decay_rate, uncorrected_maximum)
        next_key, noise_key = jax.random.split(key_of(state.rng_key, key))
        drawn = optax.tree.random_like(noise_key, utility, NOISES[noise])
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def step(
            grad: jax.Array, param: jax.Array, ratio: jax.Array, drawn: jax.Array
        ) -> jax.Array:
            dtype = ratio.dtype
            alpha, decay, sigma = (
                jnp.asarray(number, dtype)
                for number in (rate, weight_decay, noise_scale)
            )
            wide_grad, openness = grad.astype(dtype), jax.nn.sigmoid(-ratio)  # 1 - s
            if protecting:
                direction = (wide_grad + sigma * drawn) * openness
            else:
                direction = wide_grad + sigma * drawn * openness
            shrinkage = alpha * decay * param.astype(dtype)
            return (-alpha * direction - shrinkage).astype(widen(grad, param).dtype)

        updates = jax.tree.map(step, updates, params, ratio, drawn)
        return updates, UPGDState(count, utility, key_bits(next_key))

    return optax.GradientTransformationExtraArgs(init, update)


def average_utility(
    decay_rate: float | jax.Array,
    utility: jax.Array,
    grad: jax.Array,
    param: jax.Array,
) -> jax.Array:
    """Updates the average utility U of one leaf, in the dtype of U."""
    dtype = utility.dtype
    decay = jnp.asarray(decay_rate, dtype)
    return decay * utility - (1 - decay) * grad.astype(dtype) * param.astype(dtype)


def divide_by_maximum(
    utility: PyTree,
    count: jax.Array,
    decay_rate: float | jax.Array,
    uncorrected_maximum: bool,
) -> PyTree:
    """Divides the corrected utilities by their overall maximum; 0 if that is 0."""
    maxima = [jnp.max(leaf) for leaf in jax.tree.leaves(utility) if leaf.size]
    if not maxima:
        return utility
    maximum = functools.reduce(jnp.maximum, maxima)

    def divide(leaf: jax.Array) -> jax.Array:
        divisor = maximum.astype(leaf.dtype)
        if uncorrected_maximum:
            leaf = leaf / average_weight(count, decay_rate, leaf.dtype)
        # Otherwise the corrections in numerator and denominator cancel.
        return jnp.where(divisor == 0, 0, leaf / jnp.where(divisor == 0, 1, divisor))

    return jax.tree.map(divide, utility)

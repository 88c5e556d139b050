"""Perturbed gradient descent: the noise of UPGD without its utility."""

import jax
import optax

from cbp_jax.optimizers._shrink_and_perturb import perturb


def pgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    noise_scale: float | jax.Array,
    key: jax.Array,
    noise: str = "normal",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with noise on the gradient.

    .. math::
      \theta \leftarrow \theta - \alpha (g + \xi), \qquad \xi \sim N(0, \sigma^2)

    It is `upgd` without utilities, and a control of it. Unlike in `perturb`, which adds
    noise to the params, the noise is scaled by the learning rate.

    Args:
      learning_rate: :math:`\alpha`, or a schedule of the count of updates.
      noise_scale: :math:`\sigma`. With 0 the updates are those of `optax.sgd`, bit for
        bit.
      key: PRNG key of the noise. Under `vmap`, "rbg" keys make a lane depend on its
        neighbors; see `cbp_jax.continual_backprop`.
      noise: "normal" or "signs"; see `cbp_jax.optimizers.perturb`.

    Returns:
      An optax transformation.

    Raises:
      ValueError: unknown `noise`.

    References:
      Elsayed and Mahmood, `Addressing loss of plasticity and catastrophic forgetting in
      continual learning <https://arxiv.org/abs/2404.00781>`_, 2024, who compare with
      it; `core/optim/pgd.py` of their code.
    """
    return optax.chain(
        perturb(noise_scale, key=key, noise=noise),
        optax.scale_by_learning_rate(learning_rate),
    )

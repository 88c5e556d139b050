"""AdamO: Adam with decoupled isometry regularization."""

from collections.abc import Sequence
import functools

import jax
import optax

from cbp_jax import losses
from cbp_jax._types import PyTree, Rate
from cbp_jax.optimizers._penalties import penalty


def adamo(
    learning_rate: Rate,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    strength: float | jax.Array = 1e-3,
    layout: str = "io",
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Adam that also moves each kernel toward isometry, outside its moments.

    .. math::
      \theta \leftarrow \theta - \alpha \Big(
      \frac{\hat\mu}{\sqrt{\hat\nu} + \epsilon} + \lambda \nabla R(\theta) \Big)

    with the loss R of `cbp_jax.losses.isometry`. Only the gradient of the task enters
    Adam's moments :math:`\mu` and :math:`\nu`, as AdamW does it with weight decay. The
    paper initializes kernels with orthogonal matrices,
    `jax.nn.initializers.orthogonal()`; this function leaves the initial params as they
    are.

    Args:
      learning_rate: :math:`\alpha`, published 1e-4; a number or a schedule.
      b1: decay of the first moments.
      b2: decay of the second moments.
      eps: :math:`\epsilon`.
      strength: :math:`\lambda`, published 1e-3. 0 is `optax.adam`, bit for bit.
      layout: "io" for kernels `[..., in, out]`, "oi" for `[out, in, ...]`.
      exclude: paths of layers or leaves to leave alone, such as `"head"`.

    Returns:
      An optax transformation. Its update needs the params.

    Raises:
      ValueError: the layout is unknown, a path is not in the params, or the update gets
        no params.

    References:
      Rosseau, Müller and Nowé, `Preserving plasticity in continual learning via
      dynamical isometry <https://arxiv.org/abs/2606.09762>`_, 2026.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        isometry(strength, layout=layout, exclude=exclude),
        optax.scale_by_learning_rate(learning_rate),
    )


def isometry(
    strength: float | jax.Array,
    *,
    layout: str = "io",
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of `cbp_jax.losses.isometry` to the updates.

    Before the optimizer, :math:`g \leftarrow g + \lambda \nabla R(\theta)` is a penalty
    like any other. Between the direction of an optimizer and its learning rate it is
    decoupled; `adamo` places it there. After a whole optimizer, pass the strength
    :math:`-\alpha \lambda`::

      tx = optax.chain(optax.sgd(1e-2), cbp_jax.optimizers.isometry(-1e-2 * 1e-3))

    Args:
      strength: factor of the gradient. 0 does not change the updates, bit for bit.
      layout: "io" for kernels `[..., in, out]`, "oi" for `[out, in, ...]`.
      exclude: paths of layers or leaves to leave alone, such as `"head"`.

    Returns:
      An optax transformation without state. Its update needs the params.

    Raises:
      ValueError: the layout is unknown, a path is not in the params, or the update gets
        no params.

    References:
      Rosseau, Müller and Nowé, `Preserving plasticity in continual learning via
      dynamical isometry <https://arxiv.org/abs/2606.09762>`_, 2026.
    """
    loss = functools.partial(losses.isometry, layout=layout, exclude=tuple(exclude))

    def init(params: PyTree) -> optax.EmptyState:
        jax.eval_shape(loss, params)  # Raises the errors of wrong arguments.
        return optax.EmptyState()

    return penalty("isometry", strength, init, lambda params, _: loss(params))

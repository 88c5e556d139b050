"""Parseval regularization as a gradient penalty."""

from collections.abc import Sequence
import functools

import jax
import optax

from cbp_jax import losses
from cbp_jax._types import PyTree
from cbp_jax.optimizers._penalties import penalty


def parseval(
    strength: float | jax.Array,
    *,
    gain: float | jax.Array = 2**0.5,
    reference_width: float | None = 64,
    num_groups: int = 1,
    layout: str = "io",
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of `cbp_jax.losses.parseval` to the gradient.

    .. math::
      g \leftarrow g + \lambda \nabla \sum_W \Big(\frac{w}{n_W}\Big)^2
      \big\| W W^\top - \gamma^2 I \big\|_F^2

    over kernels W with :math:`n_W` outputs. Put it before the optimizer, and exclude
    the output layer, as the paper does::

      tx = optax.chain(
          cbp_jax.optimizers.parseval(1e-3, exclude=("head",)), optax.adam(1e-3)
      )

    Args:
      strength: :math:`\lambda`, published 1e-3 and 1e-4. 0 does not change the updates,
        bit for bit.
      gain: :math:`\gamma`; see `cbp_jax.losses.parseval`, also for the rest.
      reference_width: w; None omits the factor.
      num_groups: number of groups of units within which rows become orthogonal. For
        `optax.inject_hyperparams` it is a static argument.
      layout: "io" for kernels `[..., in, out]`, "oi" for `[out, in, ...]`.
      exclude: paths of layers or leaves to leave alone, such as `"head"`.

    Returns:
      An optax transformation without state. Its update needs the params.

    Raises:
      ValueError: the layout is unknown, a path is not in the params, a number of
        outputs is not divisible by `num_groups`, or the update gets no params.

    References:
      Chung et al., `Parseval regularization for continual reinforcement learning
      <https://arxiv.org/abs/2412.07224>`_, 2024.
    """
    loss = functools.partial(
        losses.parseval,
        gain=gain,
        reference_width=reference_width,
        num_groups=num_groups,
        layout=layout,
        exclude=tuple(exclude),
    )

    def init(params: PyTree) -> optax.EmptyState:
        jax.eval_shape(loss, params)  # Raises the errors of wrong arguments.
        return optax.EmptyState()

    return penalty("parseval", strength, init, lambda params, _: loss(params))

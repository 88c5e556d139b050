"""AdamW whose bias correction knows how old each unit is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbp_jax.averages import at_least_float32
from cbp_jax.checks import check_params
from cbp_jax.optimizers.adam_with_unit_counts import scale_by_adam_with_unit_counts
from cbp_jax.resets.units import PyTree, UnitGroup

Mask = PyTree | Callable[[PyTree], PyTree] | None


def adamw_with_unit_counts(
    learning_rate: optax.ScalarOrSchedule,
    units: Sequence[UnitGroup],
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 1e-4,
    mask: Mask = None,
    *,
    eps_before_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose bias correction counts the updates of each weight since its birth.

    `adam_with_unit_counts` with weight decay beside the gradient: a step of Adam, less
    :math:`\alpha \lambda \theta` with step size :math:`\alpha`. On its own, or in front
    of `replace_units`, it is `optax.adamw`; with `weight_decay=0` it is
    `adam_with_unit_counts`. The weights of a reborn unit decay from its next update on.

    Args:
      learning_rate: :math:`\alpha`, or a schedule of the optimizer's count of updates.
      units: see `adam_with_unit_counts`.
      b1: see `adam_with_unit_counts`.
      b2: see `adam_with_unit_counts`.
      eps: see `adam_with_unit_counts`.
      weight_decay: :math:`\lambda`.
      mask: which params decay: a tree of bools that begins like the params, or a
        function of the params that gives it; None for all.
      eps_before_correction: see `adam_with_unit_counts`.

    Returns:
      An optax transformation, see `adam_with_unit_counts`; its update needs the params.

    Raises:
      ValueError: a group does not fit the params, see `cbp_jax.sequential_units`, or
        the update gets no params.

    References:
      Loshchilov and Hutter, `Decoupled weight decay regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019.
    """
    tx = optax.chain(
        scale_by_adam_with_unit_counts(
            units, b1, b2, eps, eps_before_correction=eps_before_correction
        ),
        _add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        check_params("adamw_with_unit_counts", params)
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _add_decayed_weights(
    weight_decay: float | jax.Array, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """That of optax, but a traced number does not change the dtype of updates."""

    def decay(update: jax.Array, param: jax.Array) -> jax.Array:
        dtype = at_least_float32(update.dtype)
        strength = jnp.asarray(weight_decay, dtype)
        return (update.astype(dtype) + strength * param.astype(dtype)).astype(
            update.dtype
        )

    tx = optax.stateless(lambda updates, params: jax.tree.map(decay, updates, params))
    tx = optax.with_extra_args_support(tx)
    return tx if mask is None else optax.masked(tx, mask)

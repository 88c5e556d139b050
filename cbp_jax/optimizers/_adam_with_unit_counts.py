"""Adam and AdamW whose bias correction accounts for the age of each unit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import optax

from cbp_jax._numbers import at_least_float32, average_weight, check_params
from cbp_jax._types import PyTree
from cbp_jax._units import UnitGroup, resolve_units
from cbp_jax._xla import computed_once

Mask = PyTree | Callable[[PyTree], PyTree] | None


class AdamWithUnitCountsState(NamedTuple):
    """State of `scale_by_adam_with_unit_counts`."""

    count: jax.Array  # int32 scalar, updates so far.
    mu: PyTree  # First moments, like the params.
    nu: PyTree  # Second moments, like the params.


def adam_with_unit_counts(
    learning_rate: optax.ScalarOrSchedule,
    units: Sequence[UnitGroup],
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    eps_before_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose bias correction counts the updates of each weight since its reset.

    Use it as the base optimizer of `continual_backprop`, which passes the ages. On its
    own, or in front of `replace_units`, it is Adam.

    Adam divides its moments by :math:`1 - \beta^t` with one :math:`t` for all weights.
    A weight whose moments continual backprop has just zeroed then moves several times
    too far. Here each weight has its own :math:`t`. The weight from unit i to unit j is
    as old as the younger of the two, so the ages that continual backprop already keeps
    per unit are enough. Inputs and outputs of the network are as old as the optimizer.

    Equal betas are another remedy, which works with any Adam: with `b1=b2` no step is
    longer than the learning rate, whatever the gradients, because the square of an
    average is at most the average of the squares. With one count for all weights, the
    first steps of a reset unit are then too short, initially by
    :math:`\sqrt{1 - \beta}`. Here they are as long as those of any new weight.

    Args:
      learning_rate: step size, or a schedule of the optimizer's count of updates.
      units: the unit groups given to `continual_backprop`.
      b1: decay rate of the first moments.
      b2: decay rate of the second moments.
      eps: added to the square root of the second moment.
      eps_before_correction: add `eps` to the square root of the uncorrected second
        moment, as in the authors' code and at the end of section 2 of the Adam paper.
        False adds it after the correction, as `optax.adam` does.

    Returns:
      An optax transformation. Its update takes the keyword `unit_ages`, which maps each
      group's name to the number of updates since each unit was last reset, int32 [N],
      not counting this one.

    Raises:
      ValueError: a group does not fit the params; see `cbp_jax.sequential_units`.

    References:
      Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014; Dohare et al.,
      `arXiv:2306.13812 <https://arxiv.org/abs/2306.13812>`_, 2023, whose code keeps one
      count per weight; Dohare, Lan and Mahmood, `Overcoming policy collapse in deep
      reinforcement learning <https://openreview.net/forum?id=m9Jfdz4ymO>`_, 2023, for
      equal betas.
    """
    return optax.chain(
        scale_by_adam_with_unit_counts(
            units, b1, b2, eps, eps_before_correction=eps_before_correction
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


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
    r"""AdamW whose bias correction counts the updates of each weight since its reset.

    This is `adam_with_unit_counts` with decoupled weight decay: a step of Adam minus
    :math:`\alpha \lambda \theta`, with step size :math:`\alpha`. On its own, or in
    front of `replace_units`, it is `optax.adamw`; with `weight_decay=0` it is
    `adam_with_unit_counts`. The weights of a reset unit decay from the next update on.

    Args:
      learning_rate: :math:`\alpha`, or a schedule of the optimizer's count of updates.
      units: see `adam_with_unit_counts`.
      b1: see `adam_with_unit_counts`.
      b2: see `adam_with_unit_counts`.
      eps: see `adam_with_unit_counts`.
      weight_decay: :math:`\lambda`.
      mask: which params decay: a tree of bools that is a prefix of the params, or a
        function that maps the params to such a tree; None for all.
      eps_before_correction: see `adam_with_unit_counts`.

    Returns:
      An optax transformation, see `adam_with_unit_counts`. Its update needs the params.

    Raises:
      ValueError: a group does not fit the params (see `cbp_jax.sequential_units`), or
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


def scale_by_adam_with_unit_counts(
    units: Sequence[UnitGroup],
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    eps_before_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The scaling of `adam_with_unit_counts`, without the learning rate.

    Args:
      units: see `adam_with_unit_counts`.
      b1: see `adam_with_unit_counts`.
      b2: see `adam_with_unit_counts`.
      eps: see `adam_with_unit_counts`.
      eps_before_correction: see `adam_with_unit_counts`.

    Returns:
      An optax transformation; see `adam_with_unit_counts`.
    """
    units = tuple(units)

    def init(params: PyTree) -> AdamWithUnitCountsState:
        # map_params calls init with a placeholder to find which fields are params.
        if jax.tree.leaves(params):
            resolve_units(units, params)
        return AdamWithUnitCountsState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    def update(
        updates: PyTree,
        state: AdamWithUnitCountsState,
        params: PyTree | None = None,
        *,
        unit_ages: Mapping[str, jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, AdamWithUnitCountsState]:
        del params, extra_args
        mu = _average_in(optax.tree.update_moment, updates, state.mu, b1, 1)
        nu = _average_in(
            optax.tree.update_moment_per_elem_norm, updates, state.nu, b2, 2
        )
        first_weights, second_weights = (
            _average_weights(units, mu, state.count, unit_ages or {}, decay)
            for decay in (b1, b2)
        )

        def scale(
            first_weight: jax.Array,
            second_weight: jax.Array,
            mu: jax.Array,
            nu: jax.Array,
        ) -> jax.Array:
            dtype = at_least_float32(mu.dtype)
            first = mu.astype(dtype) / first_weight
            second = jnp.sqrt(nu.astype(dtype) / second_weight)
            added = eps / jnp.sqrt(second_weight) if eps_before_correction else eps
            return (first / (second + added)).astype(mu.dtype)

        updates = jax.tree.map(scale, first_weights, second_weights, mu, nu)
        return updates, AdamWithUnitCountsState(
            optax.safe_increment(state.count), mu, nu
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _average_in(
    update_moment: Callable[..., jax.Array],
    updates: PyTree,
    moments: PyTree,
    decay_rate: float | jax.Array,
    order: int,
) -> PyTree:
    """Updates moments in at least float32, whatever the dtype of the decay rate."""

    def average(update: jax.Array, moment: jax.Array) -> jax.Array:
        dtype = at_least_float32(moment.dtype)
        rate = decay_rate
        if not isinstance(rate, float | int):
            rate = jnp.asarray(rate, dtype)
        wide = update_moment(update.astype(dtype), moment.astype(dtype), rate, order)
        return wide.astype(moment.dtype)

    return jax.tree.map(average, updates, moments)


def _average_weights(
    units: Sequence[UnitGroup],
    tree: PyTree,
    count: jax.Array,
    unit_ages: Mapping[str, jax.Array],
    decay_rate: float | jax.Array,
) -> PyTree:
    """Returns 1 - decay**t for each leaf; t counts each weight's updates up to this.

    The arrays broadcast against the leaves, so they stay small until they are used. The
    younger of two units has the smaller value, so one power per unit is enough.
    """

    def weight_of(age: jax.Array, dtype: DTypeLike) -> jax.Array:
        return average_weight(optax.safe_increment(age), decay_rate, dtype)

    leaves, treedef = jax.tree.flatten(tree)
    dtypes = [at_least_float32(leaf.dtype) for leaf in leaves]
    weights = [weight_of(count, dtype) for dtype in dtypes]
    for group in resolve_units(units, tree):
        if group.name not in unit_ages:
            continue
        for axes in group.all_axes:
            own = weight_of(unit_ages[group.name], dtypes[axes.leaf])
            own = axes.spread(computed_once(own))
            weights[axes.leaf] = jnp.minimum(weights[axes.leaf], own)
    return treedef.unflatten(weights)


def _add_decayed_weights(
    weight_decay: float | jax.Array, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights`, but a traced number keeps the dtype of updates."""

    def decay(update: jax.Array, param: jax.Array) -> jax.Array:
        dtype = at_least_float32(update.dtype)
        strength = jnp.asarray(weight_decay, dtype)
        return (update.astype(dtype) + strength * param.astype(dtype)).astype(
            update.dtype
        )

    tx = optax.stateless(lambda updates, params: jax.tree.map(decay, updates, params))
    tx = optax.with_extra_args_support(tx)
    return tx if mask is None else optax.masked(tx, mask)

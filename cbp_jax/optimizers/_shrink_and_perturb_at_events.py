"""Shrink and perturb as published: now and then, toward a fresh initialization."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cbp_jax._numbers import at_least_float32, is_known
from cbp_jax._types import PyTree
from cbp_jax.optimizers._events import Schedule, act_at, draw_params, pass_events


def shrink_and_perturb_at_events(
    schedule: Schedule,
    init_fn: Callable[[jax.Array], PyTree],
    *,
    shrink: float | jax.Array = 0.4,
    perturb: float | jax.Array = 0.1,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks all params and adds a fraction of a fresh initialization, at events.

    .. math:: \theta \leftarrow \lambda \theta + \gamma \theta_\text{new}

    after each update of the schedule, where :math:`\theta_\text{new}` is drawn from the
    initial distribution of each param: what is initialized to a constant, such as the
    bias 0 or the scale 1 of a normalization, has no noise. The last link of a chain::

      init_fn = lambda key: model.init(key, inputs)["params"]
      tx = optax.chain(
          optax.sgd(1e-2),
          shrink_and_perturb_at_events(every(10_000), init_fn, key=key),
      )

    The authors apply it each time that data are added and begin with a new optimizer:
    wrap the chain in `reset_optimizer_at` for the latter. Other works of the same name
    differ: `shrink_and_perturb` acts at every update with normal noise; some take
    :math:`\lambda = 1 - \gamma`, and some for :math:`\theta_\text{new}` the params that
    training began with, here `init_fn=lambda key: initial_params`.

    Args:
      schedule: which updates are events, see `cbp_jax.optimizers.every`.
      init_fn: function of a typed key that returns fresh params.
      shrink: :math:`\lambda`, published 0.4 to 0.9 and as default of the authors' code.
      perturb: :math:`\gamma`, published 0.01 to 0.1. With `shrink` 1 and `perturb` 0
        the updates are left as they are, bit for bit; 0 and 1 reset all params.
      key: PRNG key. Under `vmap` keys of "rbg" make a lane depend on those beside it,
        see `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation of state `EventState`; its update needs the params.

    Raises:
      ValueError: the update gets no params, or `init_fn` returns another tree.

    References:
      Ash and Adams, `On warm-starting neural network training
      <https://arxiv.org/abs/1910.08475>`_, 2020.
    """

    def act(params: PyTree, key: jax.Array) -> PyTree:
        def blend(param: jax.Array, fresh: jax.Array) -> jax.Array:
            dtype = at_least_float32(param.dtype)
            kept = jnp.asarray(shrink, dtype) * param.astype(dtype)
            return kept + jnp.asarray(perturb, dtype) * fresh.astype(dtype)

        return jax.tree.map(blend, params, draw_params(init_fn, key, params))

    events = act_at(schedule, act, key=key)
    if is_known(shrink, lambda shrink: shrink == 1) and is_known(
        perturb, lambda perturb: perturb == 0
    ):
        # Left out altogether: even a branch that is never taken changes how XLA rounds.
        return events._replace(update=pass_events(schedule))
    return events

"""Shrink and perturb as published: at events, toward a new initialization."""

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
    r"""Shrinks all params and adds a fraction of a new initialization at events.

    .. math:: \theta \leftarrow \lambda \theta + \gamma \theta_\text{new}

    after each update of the schedule, where :math:`\theta_\text{new}` is drawn from the
    initial distribution of each param. Params initialized to a constant, such as biases
    (0) or the scales of a normalization (1), therefore get no noise. Put it last in a
    chain::

      init_fn = lambda key: model.init(key, inputs)["params"]
      tx = optax.chain(
          optax.sgd(1e-2),
          shrink_and_perturb_at_events(every(10_000), init_fn, key=key),
      )

    The authors apply it whenever data are added, and start a new optimizer each time;
    for the latter, wrap the chain in `reset_optimizer_at`. Other methods of this name
    differ. `shrink_and_perturb` acts at every update with normal noise. Some papers use
    :math:`\lambda = 1 - \gamma`, and some use the initial params for
    :math:`\theta_\text{new}`: here, `init_fn=lambda key: initial_params`.

    Args:
      schedule: which updates are events; see `cbp_jax.optimizers.every`.
      init_fn: function of a typed key that returns newly initialized params.
      shrink: :math:`\lambda`, published 0.4 to 0.9, as is the authors' default.
      perturb: :math:`\gamma`, published 0.01 to 0.1. `shrink` 1 and `perturb` 0 do not
        change the updates, bit for bit; 0 and 1 reset all params.
      key: PRNG key. Under `vmap`, "rbg" keys make a lane depend on its neighbors; see
        `cbp_jax.continual_backprop`.

    Returns:
      An optax transformation with state `EventState`. Its update needs the params.

    Raises:
      ValueError: the update gets no params, or the tree from `init_fn` does not match
        the params.

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
        # Omit the branch: even if it is never taken, it changes how XLA rounds.
        return events._replace(update=pass_events(schedule))
    return events

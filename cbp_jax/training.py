"""flax's `TrainState` for optimizers that need features."""

from collections.abc import Mapping
import functools
from typing import Any, Self

from flax.training import train_state
import jax
import optax

from cbp_jax._types import PyTree

__all__ = ["TrainState"]


class TrainState(train_state.TrainState):
    """flax's `TrainState` for optimizers that need more than gradients.

    flax's `apply_gradients` passes no keywords to the optimizer. This one passes
    `features` and `extra_args`, and is otherwise the same::

      state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
      state = state.apply_gradients(grads=grads, features=features)
      state.opt_state.num_replaced

    It also works with optimizers that take no features, and with `optax.MultiSteps`.
    """

    def apply_gradients(
        self,
        *,
        grads: PyTree,
        features: Mapping[str, jax.Array] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Updates the params and the optimizer state.

        Args:
          grads: gradients, like the params.
          features: activations of each unit group; see `cbp_jax.continual_backprop`.
          extra_args: other keywords for the optimizer's update, such as
            `{"value": loss}` for `optax.contrib.reduce_on_plateau`.
          **kwargs: new values of other fields, such as batch statistics.

        Returns:
          The new state, with `step` one higher.

        Raises:
          ValueError: features that the optimizer needs are missing, or do not fit.
        """
        tx = self.tx
        if isinstance(tx, optax.GradientTransformation):  # Unlike MultiSteps.
            tx = optax.with_extra_args_support(tx)
        update = functools.partial(tx.update, features=features, **(extra_args or {}))
        bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
        # flax does everything else.
        new = super(TrainState, bound).apply_gradients(grads=grads, **kwargs)
        return new.replace(tx=self.tx)

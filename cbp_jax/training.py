"""flax's `TrainState`, whose gradients may come with features."""

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

    That of flax gives the keywords of `apply_gradients` to `replace` and none to the
    optimizer. This one differs in that only, so it can be subclassed likewise::

      state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
      state = state.apply_gradients(grads=grads, features=features)
      state.opt_state.num_replaced

    The optimizer may also be one that takes no features, or `optax.MultiSteps`.
    """

    def apply_gradients(
        self,
        *,
        grads: PyTree,
        features: Mapping[str, jax.Array] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Updates the params and all that the optimizer keeps.

        Args:
          grads: gradients, like the params.
          features: activations of each unit group, see `cbp_jax.continual_backprop`.
          extra_args: other keywords for the optimizer's update, `{"value": loss}` for
            `optax.contrib.reduce_on_plateau`.
          **kwargs: new values of other fields, such as batch statistics.

        Returns:
          The new state, with `step` one higher.

        Raises:
          ValueError: features that the optimizer needs are missing, or do not fit.
        """
        tx = self.tx
        if isinstance(tx, optax.GradientTransformation):  # MultiSteps is none.
            tx = optax.with_extra_args_support(tx)
        update = functools.partial(tx.update, features=features, **(extra_args or {}))
        bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
        # What flax does around the optimizer stays flax's.
        new = super(TrainState, bound).apply_gradients(grads=grads, **kwargs)
        return new.replace(tx=self.tx)

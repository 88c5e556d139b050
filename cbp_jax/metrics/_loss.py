"""The loss of a measure, which a user's function computes."""

import jax

from cbp_jax._numbers import check_numbers
from cbp_jax._types import LossFn, PyTree


def scalar_loss(
    loss_fn: LossFn, params: PyTree, inputs: PyTree, targets: PyTree
) -> jax.Array:
    """Returns the loss; raises ValueError if it is not one number."""
    loss = loss_fn(params, inputs, targets)
    check_numbers(
        "loss_fn", loss, (), "the loss. Return the mean over the examples, and no more"
    )
    return loss

"""Losses that a method adds to the task's, and what they see and remember.

A method with such a loss builds an `AddedLoss` instead of an optimizer. The learner
adds the loss to that of the task, or descends it now and then in steps of its own.

Shapes: B batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cbp_jax import optimizers


class Seen(NamedTuple):
    """What an added loss sees of one update.

    Attributes:
      params: the network's params, with respect to which the loss is differentiated.
      network_state: the statistics of its normalizations by collection, {} for none.
      inputs: `[B, ...]`.
      targets: `[B]` or `[B, num_outputs]`: int32 for classes, float32 for values.
      outputs: `[B, num_outputs]`, of these params and inputs.
      features: the hidden activations by layer, `[B, ..., units]`, before dropout.
      task_loss: the loss of the task, a scalar.
      num_updates: updates before this one, int32 scalar.
    """

    params: Any
    network_state: Any
    inputs: jax.Array
    targets: jax.Array
    outputs: jax.Array
    features: dict[str, jax.Array]
    task_loss: jax.Array
    num_updates: jax.Array


def _nothing(params: Any, network_state: Any, inputs: jax.Array) -> None:
    del params, network_state, inputs


def _same(seen: Seen, memory: Any) -> Any:
    del seen
    return memory


class AddedLoss(NamedTuple):
    """A loss besides that of the task, with a memory.

    Attributes:
      loss: `(seen, memory) -> scalar`. The gradient with respect to the params is added
        to that of the task, so that any optimizer takes both. `memory` is from before
        this update. Outputs and features are those of the training step, with dropout.
      init: `(params, network_state, inputs) -> memory`, a pytree of arrays, None for no
        memory. `inputs` are zeros in the shape of a batch. Copy params that you keep.
        Where a problem clears the output layer at a change of task, it does so in every
        tree of the memory that has the structure of the params.
      remember: `(seen, memory) -> memory` after each update, with the params from
        before it; must keep the structure, shapes and dtypes.
      schedule: None, or which updates take a step of the loss's own, such as
        `given.every(100)`. Then nothing is added to the task's gradient.
        After such an update, and after `remember`, the params take one step of gradient
        descent on the loss, with the network as in evaluation.
      step_size: step size of these steps.
    """

    loss: Callable[[Seen, Any], jax.Array]
    init: Callable[[Any, Any, jax.Array], Any] = _nothing
    remember: Callable[[Seen, Any], Any] = _same
    schedule: optimizers.Schedule | None = None
    step_size: float | jax.Array = 0.0

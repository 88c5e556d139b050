"""What a rule is: whom to reset, from what a group of units shows at each update.

Shapes: B batch (times spatial positions that the consumer does not tell apart),
P positions (1, except for a convolution that is flattened into a dense layer), N units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Measurements(NamedTuple):
    """What a rule may look at, all of the floating dtype of the state.

    What a rule does not use is not computed under `jit`.
    """

    activation: jax.Array  # [B, P, N], from before the optimizer step.
    incoming_magnitude: jax.Array  # [N], mean |w| into the unit, after the step.
    outgoing_magnitude: jax.Array  # [P, N], mean |w| out of the unit, after the step.
    age: jax.Array  # int32 [N], optimizer updates since birth, this one included.
    count: jax.Array  # int32 scalar, optimizer updates before this one.
    key: jax.Array  # A key of this update and group.


class Choice(NamedTuple):
    """Whom to reset: the `number` units of the lowest `score`, of equals the first."""

    # Floating [N], the highest for units that must stay, as those of NaN do: +inf, or
    # under `jax_debug_infs`, which takes it for a fault, the largest finite number.
    score: jax.Array
    number: jax.Array  # int32 scalar, at most the units that may go; 0 for nobody.
    mean_activation: jax.Array | None = None  # [N], what `transfer_mean` makes up for.


class Rule(NamedTuple):
    """A rule of one group: two pure functions.

    Attributes:
      init: `(num_units, dtype) -> state`, a NamedTuple of arrays with a field `age`,
        int32 [N], which the engine keeps: it grows by one at every update. Fields with
        a leading axis of N belong to units, and go back to what `init` gives when their
        unit is reset; all others must be scalars, and stay. `dtype` is floating.
      update: `(state, measurements) -> (state, choice)`, at every update, the age
        already grown. The choice is looked at only when its number is not 0.
      most: `num_units -> K`, a static bound on the units reset in one update, where one
        is known; None for all N. A choice of more is cut off.
    """

    init: Callable[[int, Any], Any]
    update: Callable[[Any, Measurements], tuple[Any, Choice]]
    most: Callable[[int], int] | None = None


def choose_where(mask: jax.Array) -> Choice:
    """Returns the choice of all units of a mask, bool [N]."""
    score = jnp.where(mask, 0.0, 1.0)
    return Choice(score, jnp.sum(mask, dtype=jnp.int32))


def comparable(count: jax.Array, number: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a count and the number that it is compared with in one dtype.

    Args:
      count: int32 array.
      number: integer or floating, may be traced.
    """
    number = jnp.asarray(number)
    if not jnp.issubdtype(number.dtype, jnp.floating):
        number = number.astype(count.dtype)
    return count.astype(number.dtype), number

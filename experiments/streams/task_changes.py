"""How a task differs from the one before: in part, gradually, or by recurring.

Three fields of a config say it:

* `change_fraction`: the share that changes with each task, of the pixels, images or
  classes. Exactly so many change, to the nearest integer; 0 makes a stream that never
  changes.
* `transition`: examples over which a task fades in. Those of its first `transition`
  examples that belong to it become more frequent linearly; the others belong to the
  task before. Which ones do is fixed, so that their numbers are exact: of the first e
  examples, e^2 / (2 transition) belong to the new task, rounded down.
* `recurrent`: number of tasks that recur; task t is task t modulo this number.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import ConfigError


def check_changes(config: Any) -> None:
    """Raises ConfigError if a field of the changes is out of range."""
    if not 0 <= config.change_fraction <= 1:
        raise ConfigError(
            f"config.change_fraction must be from 0 to 1, got {config.change_fraction}."
        )
    if not 0 <= config.transition <= config.examples_per_task:
        raise ConfigError(
            "config.transition must be from 0 to config.examples_per_task "
            f"({config.examples_per_task}), got {config.transition}."
        )
    if config.recurrent < 0:
        raise ConfigError(
            "config.recurrent must be at least 1, or 0 for tasks that are always new, "
            f"got {config.recurrent}."
        )


def number_to_change(config: Any, what: str, size: int, least: int) -> int:
    """Returns how many of something change with each task.

    Args:
      config: a config with `change_fraction`.
      what: what changes, for the message of an error.
      size: how many there are.
      least: the smallest number that can change, if any do.

    Raises:
      ConfigError: fewer than `least`, but not 0, would change.
    """
    number = round(config.change_fraction * size)
    if config.change_fraction > 0 and number < least:
        raise ConfigError(
            f"config.change_fraction {config.change_fraction} of {size} {what} is "
            f"{number}, but at least {least} must change: set it to at least "
            f"{least / size:.2g}, or to 0 for a stream that never changes."
        )
    return number


def task_and_previous(config: Any, task: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the task that task number `task` is, and the one that precedes it.

    Both are int32 scalars, below `config.recurrent` unless it is 0. Nothing precedes
    the first task, which is returned twice.
    """
    previous = jnp.maximum(task - 1, 0)
    if config.recurrent:
        return task % config.recurrent, previous % config.recurrent
    return task, previous


def is_of_new_task(config: Any) -> np.ndarray:
    """Returns which examples of a task are its own, bool `[examples_per_task]`."""
    is_new = np.ones(config.examples_per_task, bool)
    length = config.transition
    if length:
        examples = np.arange(length + 1, dtype=np.int64)
        is_new[:length] = np.diff(examples**2 // (2 * length))
    return is_new


def draw_permutation(
    key_of: Callable[[jax.Array], jax.Array],
    task: jax.Array,
    size: int,
    num_changed: int,
) -> jax.Array:
    """Draws the permutation of a task.

    If all entries change, each task has a new random permutation. If only some do, they
    are chosen at random in each task and exchanged along a cycle, so that none of them
    stays where it was. Then the task repeats the draws of all tasks before it, which
    takes about as long as so many shuffles of `size` numbers.

    Args:
      key_of: the key of each task's draw, which also depends on the seed.
      task: int32 scalar.
      size: number of entries.
      num_changed: number of entries that differ from the task before, 0, or from 2 to
        `size`. If it is `size`, an entry may stay by chance.

    Returns:
      int32 `[size]`.
    """
    if num_changed == size:
        return jax.random.permutation(key_of(task), size)

    def change(number: jax.Array, permutation: jax.Array) -> jax.Array:
        moved = jax.random.permutation(key_of(number), size)[:num_changed]
        return permutation.at[moved].set(permutation[jnp.roll(moved, 1)])

    first = jax.random.permutation(key_of(jnp.zeros_like(task)), size)
    return lax.fori_loop(1, task + 1, change, first) if num_changed else first

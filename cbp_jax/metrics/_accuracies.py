"""Plasticity and forgetting from accuracies alone. Shapes: T tasks.

Any score works of which 1 is the best possible, such as a normalized return.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax._numbers import as_float, float_dtype


class TaskPlasticity(NamedTuple):
    """Result of `task_plasticity`, float32 or float64."""

    difference: jax.Array  # [T], continual minus from scratch.
    ratio: jax.Array  # [T], continual over from scratch.
    forward_transfer: jax.Array  # [T], the difference over 1 minus from scratch.
    intransigence: jax.Array  # Scalar, minus the mean difference.


def task_plasticity(accuracy: jax.Array, scratch_accuracy: jax.Array) -> TaskPlasticity:
    """Compares a continual learner with learners that start from scratch.

    With a_t the accuracy of the continual learner on task t and b_t that of a learner
    that was trained on task t alone, for as long:

    * the difference a_t - b_t and the ratio a_t / b_t are below 0 and 1 where
      plasticity is lost,
    * forward transfer is (a_t - b_t) / (1 - b_t): 1 if the continual learner is
      perfect. With a_t and b_t averages over a task's training, they are areas under
      the learning curves (Wołczyk et al., Continual World, 2021).
    * intransigence is the mean of b_t - a_t over the tasks. Its source (Chaudhry et
      al., Riemannian walk for incremental learning, 2018) takes as b_t the accuracy of
      a learner of all tasks so far.

    Args:
      accuracy: [T] accuracy on each task, right after it or averaged over its training,
        in [0, 1].
      scratch_accuracy: [T] the same from scratch.

    Returns:
      A `TaskPlasticity`. A ratio is NaN where b_t is 0, and a forward transfer where
      b_t is 1.

    Raises:
      ValueError: the shapes differ.
    """
    if jnp.shape(accuracy) != jnp.shape(scratch_accuracy):
        raise ValueError(
            f"accuracy has shape {jnp.shape(accuracy)} and scratch_accuracy "
            f"{jnp.shape(scratch_accuracy)}, expected one shape [tasks]. Pass one "
            "accuracy of each learner for each task."
        )
    dtype = float_dtype(accuracy, scratch_accuracy)
    accuracy = jnp.asarray(accuracy, dtype)
    scratch = jnp.asarray(scratch_accuracy, dtype)
    difference = accuracy - scratch
    return TaskPlasticity(
        difference,
        _divide(accuracy, scratch),
        _divide(difference, 1 - scratch),
        -jnp.mean(difference),
    )


class Forgetting(NamedTuple):
    """Result of `forgetting`; scalars, float32 or float64."""

    forgetting: jax.Array  # Mean over the earlier tasks, from the best accuracy.
    backward_transfer: jax.Array  # Mean change since a task was trained on.
    forward_transfer: jax.Array  # Mean gain before a task is trained on.


def forgetting(
    accuracies: jax.Array, initial_accuracy: jax.Array | float = 0.0
) -> Forgetting:
    """Summarizes the accuracies on all tasks after each task.

    With R[i, j] the accuracy on task j after training on tasks 0 to i:

    * forgetting is the mean of max_i R[i, j] - R[T - 1, j] over all tasks but the last,
      with i from j to T - 2 (Chaudhry et al., Riemannian walk for incremental learning,
      2018, whose i begins at 0),
    * backward transfer is the mean of R[T - 1, j] - R[j, j] over the same tasks,
    * forward transfer is the mean of R[j - 1, j] minus the accuracy before all
      training, over all tasks but the first. The last two are of Lopez-Paz and Ranzato,
      Gradient episodic memory for continual learning, 2017.

    Args:
      accuracies: [T, T] R, in [0, 1]. Entries of tasks two or more ahead of those
        trained are not used.
      initial_accuracy: [T] or scalar, accuracy on each task before all training.

    Returns:
      A `Forgetting`.

    Raises:
      ValueError: `accuracies` is not a square matrix of at least two tasks.
    """
    shape = jnp.shape(accuracies)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        raise ValueError(
            f"accuracies has shape {shape}, expected [tasks, tasks] with at least two "
            "tasks. Give the accuracy on each task (column) after training on each "
            "task (row)."
        )
    accuracies = as_float(accuracies)
    initial = jnp.asarray(initial_accuracy, accuracies.dtype)
    initial = jnp.broadcast_to(initial, shape[:1])
    last, before = accuracies[-1, :-1], accuracies[:-1, :-1]
    is_after = jnp.tri(shape[0] - 1, dtype=bool)
    lowest = jnp.finfo(accuracies.dtype).min
    best = jnp.max(before, axis=0, initial=lowest, where=is_after)
    ahead = jnp.diagonal(accuracies, 1)
    return Forgetting(
        jnp.mean(best - last),
        jnp.mean(last - jnp.diagonal(before)),
        jnp.mean(ahead - initial[1:]),
    )


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    quotient = numerator / jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, jnp.nan, quotient)

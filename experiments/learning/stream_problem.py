"""The problem of a stream of examples, with one update per example or mini-batch.

Shapes: T examples of a task, B batch, N batches of a task.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments.learning.checks import (
    ConfigError,
    check_batch_size,
    check_choice,
    check_measured_examples,
)
from experiments.learning.keys import STREAM
from experiments.learning.learner import (
    LearnerState,
    compiled_method,
    cross_entropy,
    make_learner,
    scan_updates,
)
from experiments.learning.measures import layer_measures, task_measures
from experiments.learning.methods import METHODS
from experiments.learning.networks import make_network
from experiments.learning.problem import Problem

_EVALUATED_TOGETHER = 1000  # Examples, so that large sets fit in memory.


class Deferred(NamedTuple):
    """Examples that are made batch by batch, because all would not fit in memory.

    Attributes:
      items: pytree of arrays `[T, ...]` from which examples are made.
      read: `items -> (inputs, targets)`, for any number of items: maps `[B, ...]` to
        inputs `[B, *input_shape]` and targets `[B]`.
    """

    items: Any
    read: Callable[[Any], tuple[jax.Array, jax.Array]]


Examples = tuple[jax.Array, jax.Array] | Deferred
"""Inputs `[T, *input_shape]` and targets `[T, ...]`, or how to make them."""


Sample = Callable[[jax.Array, jax.Array, Any], Examples]
"""`(key, task, data) -> examples`, a pure function."""


def make_stream_problem(
    config: Any,
    sample: Sample,
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    loss: str,
    data: Any = MappingProxyType({}),
    examples_per_change: int | None = None,
    evaluations: Mapping[str, Sample] = MappingProxyType({}),
    acts_after: Callable[[jax.Array], jax.Array | bool] | None = None,
) -> Problem:
    """Builds the problem of a stream that a learner sees example by example.

    Args:
      config: the case's config, with the fields of configs/common.py.
      sample: `(key, task, data) -> examples`, a pure function that draws a task. `key`
        is the stream key of a seed, the same for every task and method; draw what
        changes with the task from `jax.random.fold_in(key, task)`. `task` is an int32
        scalar. Classes are int32 `[T]`; targets of a regression are float32, `[T]` or
        `[T, num_outputs]`.
      input_shape: shape of one input: `(size,)` for an MLP, `(height, width, channels)`
        for a convolutional network.
      num_outputs: number of classes, or of targets.
      loss: a key of `LOSSES`.
      data: pytree of NumPy arrays that all lanes share, such as the images.
      examples_per_change: number of examples after which the stream changes, for
        methods that act then; None is `examples_per_task`.
      evaluations: functions like `sample` that draw any number of examples for the end
        of a task. The score of `learner.predict` on them is a metric of that name.
      acts_after: with evaluations, maps a task to whether methods that know of tasks
        act after it, if a change comes only after several tasks; None for every task.

    Returns:
      The problem. Its metrics per task are the online score, `accuracy` (fraction) or
      `error` (mean squared error), and `loss` (cross-entropy in nats, or the squared
      error), both for predictions before the update; and, per layer, `layer_measures`
      on the first examples, before the task, and `task_measures`. With evaluations, a
      method that acts when a task ends does so after one additional update, on the
      first batch, so that the learner can be evaluated first.

    Raises:
      ValueError: a field is out of range, or the loss is unknown.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {list(LOSSES)}, got {loss!r}.")
    loss_fn, score = LOSSES[loss]
    check_choice("rank_method", config.rank_method, metrics.METHODS)
    check_measured_examples(config)
    check_batch_size(config, "examples_per_task")
    examples_per_change = examples_per_change or config.examples_per_task
    updates_per_task = config.examples_per_task // config.batch_size
    acts_later = (
        bool(evaluations)
        and config.method in METHODS
        and compiled_method(config).sees_tasks
    )
    learner = make_learner(
        config,
        make_network(config, input_shape, num_outputs),
        input_shape,
        loss_fn,
        updates_per_task=examples_per_change // config.batch_size + acts_later,
    )

    @jax.named_scope("measures")
    def evaluate(state: LearnerState, examples: Examples) -> jax.Array:
        items, read = _deferred(examples)
        number = len(jax.tree.leaves(items)[0])
        num_parts = -(-number // _EVALUATED_TOGETHER)
        rows = jnp.arange(num_parts * -(-number // num_parts)) % number

        def predict(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            inputs, targets = read(jax.tree.map(lambda leaf: leaf[rows], items))
            return learner.predict(state, inputs), targets

        predicted = lax.map(predict, rows.reshape(num_parts, -1))
        outputs, targets = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:number], predicted
        )
        loss = loss_fn(outputs, targets)
        return score.of_task(score.of_batch(outputs, targets, loss))

    def run_task(
        hyperparameters: Any,
        state: LearnerState,
        lane_key: jax.Array,
        task: jax.Array,
        data: Any,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        stream_key = jax.random.fold_in(lane_key, STREAM)
        with jax.named_scope("stream"):
            items, read = _deferred(sample(stream_key, task, data))
        first = jax.tree.map(lambda leaf: leaf[: config.measured_examples], items)
        _check_examples(config, items, *read(first), input_shape, num_outputs, loss)
        with jax.named_scope("measures"):
            measures = layer_measures(
                config, learner, hyperparameters, state, *read(first), task
            )

        def update(
            state: LearnerState, batch: Any, acts: bool | None
        ) -> tuple[LearnerState, tuple[jax.Array, jax.Array]]:
            with jax.named_scope("stream"):
                inputs, targets = read(batch)
            state, outputs, loss = learner.step(
                hyperparameters, state, inputs, targets, acts
            )
            return state, (score.of_batch(outputs, targets, loss), loss)

        batches = jax.tree.map(
            lambda leaf: leaf.reshape(
                updates_per_task, config.batch_size, *leaf.shape[1:]
            ),
            items,
        )
        if acts_later:
            new_state, (scores, losses) = lax.scan(
                lambda state, batch: update(state, batch, False), state, batches
            )
        else:
            new_state, (scores, losses) = scan_updates(learner, update, state, batches)
        measures |= {score.name: score.of_task(scores), "loss": jnp.mean(losses)}
        measures |= {
            name: evaluate(new_state, draw(stream_key, task, data))
            for name, draw in evaluations.items()
        }
        measures |= task_measures(learner, state, new_state)
        if acts_later:
            first_batch = jax.tree.map(lambda leaf: leaf[0], batches)
            if acts_after is None:
                new_state, _ = update(new_state, first_batch, True)
            else:
                new_state = lax.cond(
                    acts_after(task),
                    lambda state: update(state, first_batch, True)[0],
                    lambda state: state,
                    new_state,
                )
        return new_state, measures

    return Problem(
        learner=learner,
        data=dict(data) if isinstance(data, Mapping) else data,
        run_task=run_task,
        updates_per_task=updates_per_task + (acts_later and acts_after is None),
        examples_per_task=config.examples_per_task,
    )


def _deferred(examples: Examples) -> Deferred:
    if isinstance(examples, Deferred):
        return examples
    return Deferred(examples, lambda pair: pair)


def _check_examples(
    config: Any,
    items: Any,
    inputs: jax.Array,
    targets: jax.Array,
    input_shape: tuple[int, ...],
    num_outputs: int,
    loss: str,
) -> None:
    """Raises ConfigError if a stream returns something other than it should.

    Args:
      config: the case's config.
      items: of the whole task.
      inputs: the first inputs.
      targets: the first targets.
      input_shape: shape of one input.
      num_outputs: number of classes, or of targets.
      loss: a key of `LOSSES`.
    """
    numbers = {len(leaf) for leaf in jax.tree.leaves(items)}
    if numbers != {config.examples_per_task}:
        found = " and ".join(map(str, sorted(numbers)))
        raise ConfigError(
            f"The stream returns {found} examples, but "
            f"config.examples_per_task is {config.examples_per_task}: return one row "
            "for each example."
        )
    if inputs.shape[1:] != tuple(input_shape):
        raise ConfigError(
            f"The stream returns inputs of shape {inputs.shape[1:]}, but input_shape "
            f"is {tuple(input_shape)}: change one of them."
        )
    found = f"The stream returns {targets.dtype} targets of shape {targets.shape[1:]}"
    if loss == "cross_entropy":
        if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ConfigError(
                f"{found} per example, but {loss} needs an int32 class from 0 to "
                f"{num_outputs - 1}, of shape ()."
            )
        return
    allowed = [(num_outputs,), *([()] if num_outputs == 1 else [])]
    if targets.shape[1:] not in allowed:
        raise ConfigError(
            f"{found} per example, but with num_outputs={num_outputs} {loss} needs "
            f"{' or '.join(map(str, allowed))}."
        )


class _Score(NamedTuple):
    """An online score.

    Attributes:
      name: name of the metric.
      of_batch: `(outputs, targets, loss) -> array`, for one update.
      of_task: maps the arrays of a task's updates, `[N, ...]`, to its score.
    """

    name: str
    of_batch: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    of_task: Callable[[jax.Array], jax.Array]


def _is_correct(outputs: jax.Array, labels: jax.Array, loss: jax.Array) -> jax.Array:
    del loss
    return jnp.argmax(outputs, axis=-1) == labels


def _fraction(is_correct: jax.Array) -> jax.Array:
    # The sum of a count is exact in any order.
    number = jnp.sum(is_correct).astype(jnp.float32)
    return number / jnp.float32(is_correct.size)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error, without a factor 1/2.

    Args:
      outputs: `[B, num_outputs]`.
      targets: like the outputs, or `[B]` if there is only one output.
    """
    return jnp.mean((outputs.reshape(targets.shape) - targets) ** 2)


LOSSES: Mapping[str, tuple[Callable[..., jax.Array], _Score]] = MappingProxyType(
    {
        "cross_entropy": (cross_entropy, _Score("accuracy", _is_correct, _fraction)),
        "squared_error": (
            squared_error,
            _Score("error", lambda outputs, targets, loss: loss, jnp.mean),
        ),
    }
)
"""The loss that a learner minimizes, and its online score, by name."""

"""Measures of a learner before a task, one entry for each of its layers."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from cbp_jax import metrics
from experiments.learning.learner import Learner, LearnerState
from experiments.learning.problem import Measured

# The values that a bounded activation approaches.
_ASYMPTOTES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_RANKS = {
    "effective_rank": metrics.effective_rank,
    "stable_rank": metrics.stable_rank,
    "approximate_rank": metrics.approximate_rank,
}


def layer_measures(
    config: Any,
    learner: Learner,
    hyperparameters: SimpleNamespace,
    state: LearnerState,
    inputs: jax.Array,
    targets: jax.Array,
    task: jax.Array,
) -> dict[str, jax.Array | Measured]:
    """Measures a learner on some examples, without training it.

    Args:
      config: a config with `activation`, `rank_every` (tasks between measurements of
        the ranks, 0 for never) and `rank_method` (`cbp_jax.metrics.singular_values`).
      learner: the learner.
      hyperparameters: its hyperparameters.
      state: its state.
      inputs: `[samples, ...]`.
      targets: `[samples]`.
      task: int32 scalar.

    Returns:
      Float32 numbers, one for each layer. Measured for hidden layers, but not for the
      head: `dead_units`, `tau_dormant_units` (ReDo's, threshold 0.1) and
      `saturated_units` (fractions; the last for bounded activations only),
      `effective_rank`, `stable_rank` and `approximate_rank` (every `rank_every` tasks),
      and `mean_age` (updates since the last reset). Measured for all layers:
      `gradient_norm` (L2, of the mean loss over the examples) and `update_to_weight`
      (norm of the update for all examples as one batch, divided by the norm of the
      params).
    """
    features = learner.features(state, inputs)
    hidden = [features[name] for name in learner.layers[:-1]]
    per_layer = {
        "dead_units": [metrics.dead_units(layer) for layer in hidden],
        "tau_dormant_units": [metrics.tau_dormant_units(layer) for layer in hidden],
        "mean_age": [
            jnp.mean(age.astype(jnp.float32)) for age in learner.unit_ages(state)
        ],
    }
    per_layer["saturated_units"] = [None] * len(hidden)
    if config.activation in _ASYMPTOTES:
        per_layer["saturated_units"] = [
            metrics.saturated_units(layer, *_ASYMPTOTES[config.activation])
            for layer in hidden
        ]
    measures = {name: stack_layers([*found, None]) for name, found in per_layer.items()}
    grads, updates = learner.preview(hyperparameters, state, inputs, targets)
    return (
        measures
        | _ranks(config, outputs_of_layers(learner, features), task)
        | {
            "gradient_norm": _norms(learner, grads),
            "update_to_weight": _norms(learner, updates)
            / _norms(learner, state.params),
        }
    )


def task_measures(
    learner: Learner, before: LearnerState, after: LearnerState
) -> dict[str, jax.Array | Measured]:
    """Measures how a task changed a learner.

    Returns:
      Float32 numbers, one for each layer: `weight_magnitude`, the mean |w|, averaged
      over before and after the task; and `units_reset` since the first task, not
      measured for the head.
    """

    def magnitude(state: LearnerState, name: str) -> jax.Array:
        return metrics.weight_magnitude(state.params[name])

    return {
        "weight_magnitude": jnp.stack(
            [
                (magnitude(before, name) + magnitude(after, name)) / 2
                for name in learner.layers
            ]
        ),
        "units_reset": stack_layers([*learner.units_reset(after), None]),
    }


def stack_layers(per_layer: Sequence[jax.Array | None]) -> Measured:
    """Stacks one number per layer; None means not measured."""
    return Measured(
        jnp.stack(
            [
                jnp.asarray(0 if number is None else number, jnp.float32)
                for number in per_layer
            ]
        ),
        jnp.array([number is not None for number in per_layer]),
    )


def outputs_of_layers(
    learner: Learner, features: dict[str, jax.Array]
) -> list[jax.Array]:
    """Returns the hidden layers' outputs as matrices; paired units have two columns."""
    sizes = learner.layer_sizes["num_features"]
    return [
        features[name].reshape(-1, size)
        for name, size in zip(learner.layers[:-1], sizes, strict=False)
    ]


def _ranks(
    config: Any, hidden: list[jax.Array], task: jax.Array
) -> dict[str, Measured]:
    def measured() -> dict[str, Measured]:
        # Common subexpressions are compiled once, so all share one decomposition.
        return {
            name: stack_layers(
                [*(rank(layer, method=config.rank_method) for layer in hidden), None]
            )
            for name, rank in _RANKS.items()
        }

    def not_measured() -> dict[str, Measured]:
        return dict.fromkeys(_RANKS, stack_layers([None] * (len(hidden) + 1)))

    if config.rank_every == 0 or not hidden:
        return not_measured()
    return lax.cond(task % config.rank_every == 0, measured, not_measured)


def _norms(learner: Learner, tree: Any) -> jax.Array:
    """Returns the L2 norm of each layer of a tree like the params."""
    return jnp.stack([optax.tree.norm(tree[name]) for name in learner.layers])

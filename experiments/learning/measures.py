"""Measures of a network, one entry for each layer of a learner."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from cbp_jax import metrics
from experiments.learning.learners import Learner


def layer_measures(
    config: Any, learner: Learner, params: Any, inputs: jax.Array, task: jax.Array
) -> dict[str, jax.Array]:
    """Measures the features of every hidden layer on some inputs.

    Args:
      config: `rank_every` (measure ranks at every so many tasks, 0 for never) and
        `rank_method` (`cbp_jax.metrics.singular_values`).
      learner: the learner.
      params: its params.
      inputs: `[samples, ...]`.
      task: int32 scalar.

    Returns:
      `dead_units` (fraction), `effective_rank` and `stable_rank` (NaN where not
      measured), float32 arrays with one entry for each layer; NaN for the head.
    """
    features = learner.features(params, inputs)
    hidden = [_as_matrix(features[name]) for name in learner.layers[:-1]]
    nothing = jnp.float32(jnp.nan)

    def ranks() -> tuple[jax.Array, jax.Array]:
        # Equal subexpressions are compiled once, so both ranks share one decomposition.
        pairs = [
            (
                metrics.effective_rank(layer, method=config.rank_method),
                metrics.stable_rank(layer, method=config.rank_method),
            )
            for layer in hidden
        ]
        effective, stable = zip(*pairs, (nothing, nothing), strict=True)
        return jnp.stack(effective), jnp.stack(stable)

    def no_ranks() -> tuple[jax.Array, jax.Array]:
        return (jnp.full(len(learner.layers), nothing),) * 2

    effective, stable = no_ranks()
    if config.rank_every > 0 and hidden:
        effective, stable = lax.cond(task % config.rank_every == 0, ranks, no_ranks)
    dead = [metrics.dead_units(layer) for layer in hidden]
    return {
        "dead_units": jnp.stack([*dead, nothing]),
        "effective_rank": effective,
        "stable_rank": stable,
    }


def mean_weight_magnitude(learner: Learner, before: Any, after: Any) -> jax.Array:
    """Mean |w| of each layer, averaged over two params: one entry for each layer."""
    return jnp.stack(
        [
            (
                metrics.weight_magnitude(before[name])
                + metrics.weight_magnitude(after[name])
            )
            / 2
            for name in learner.layers
        ]
    )


def _as_matrix(features: jax.Array) -> jax.Array:
    return features.reshape(-1, features.shape[-1])

"""The head of a learner, which a change of task sets back."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.learning.learners import LearnerState

_HEAD = "head"


def clear_head(state: LearnerState, *, with_optimizer_state: bool) -> LearnerState:
    """Sets the head's weights and biases to 0.

    Args:
      state: of the learner.
      with_optimizer_state: also what the optimizer keeps of the head: every tree in its
        state that is like the params, be it momentum, Adam's moments or an average.

    Returns:
      The new state.
    """
    like_params = jax.tree.structure(state.params)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node) == like_params

    def clear(node: Any) -> Any:
        if not is_like_params(node):
            return node
        return {**node, _HEAD: jax.tree.map(jnp.zeros_like, node[_HEAD])}

    state = state._replace(params=clear(state.params))
    if with_optimizer_state:
        state = state._replace(
            optimizer_state=jax.tree.map(
                clear, state.optimizer_state, is_leaf=is_like_params
            )
        )
    return state

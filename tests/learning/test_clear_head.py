"""The head set back at a change of task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import by_path
from tiny_runs import one_lane, tiny_pairs

from experiments import continual_imagenet
from experiments.learning.learner import clear_head
from experiments.run.config import complete, make_cases


def trained_state(**fields):
    """A state in which nothing is 0 by chance."""
    config = complete(tiny_pairs(cases={"one": fields}))
    config = make_cases(config)["one"]
    learner = continual_imagenet.make_problem(config).learner
    hyperparameters, key = one_lane(config)
    state = jax.eval_shape(lambda: learner.init(hyperparameters, key))
    return jax.tree.map(
        lambda leaf: (
            jnp.ones(leaf.shape, leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.number)
            else jax.random.key(0)
        ),
        state,
    )


def zeroed(before, after):
    """Paths of the leaves that have become 0; all others must be the same."""
    before, after = (
        by_path(jax.tree.map(as_numbers, state)) for state in (before, after)
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all((after[name] == 0).all() for name in changed)
    return changed


def as_numbers(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


HEAD = {"params/head/bias", "params/head/kernel"}


# Arrays of the head in the optimizer's state: Muon has one for the kernel.
ARRAYS = {
    "sgd": ({"trace"}, 2),
    "adam": ({"mu", "nu"}, 4),
    "muon": ({"mu", "nu"}, 3),
}


@pytest.mark.parametrize("optimizer", ARRAYS)
@pytest.mark.parametrize("method", ["backprop", "continual_backprop"])
def test_only_the_head_is_cleared_and_its_moments_if_wanted(optimizer, method):
    state = trained_state(method=method, optimizer=optimizer)
    plain = clear_head(state, with_optimizer_state=False)
    assert zeroed(state, plain) == HEAD
    cleared = zeroed(state, clear_head(state, with_optimizer_state=True))
    moments, number = ARRAYS[optimizer]
    others = cleared - HEAD
    assert {path.split("/")[-3] for path in others} == moments
    assert {path.split("/")[-2] for path in others} == {"head"}
    assert len(others) == number


def test_what_an_added_loss_remembers_of_the_params_is_cleared():
    """Or the churn at a change of task would be that of clearing the head."""
    state = trained_state(method="c_chain")
    cleared = zeroed(state, clear_head(state, with_optimizer_state=False))
    assert cleared == HEAD | {f"memory/{path}" for path in HEAD}


def test_the_first_update_of_a_cleared_head_is_its_gradient():
    """Without momentum kept, SGD moves a head of zeros by step size x gradient."""
    state = trained_state(method="backprop")
    cleared = clear_head(state, with_optimizer_state=True)
    trace = optax.tree.get(cleared.optimizer_state, "trace")
    assert not np.any(trace["head"]["kernel"])
    assert np.all(trace["conv_0"]["kernel"] == 1)

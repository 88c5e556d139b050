"""Two tiny tasks by every method of configs/methods.py, see `golden_numbers`."""

from golden_numbers import Golden
import jax.numpy as jnp
from op_by_op import op_by_op
import pytest
from tiny_runs import one_lane, tiny_digits

from configs.methods import batch_methods, newer_methods, paper_methods
from experiments import permuted_mnist
from experiments.run.config import complete, make_cases

METHODS = Golden("methods", __file__)
CASES = (
    paper_methods(adam_step_size=0.01)
    | batch_methods(batch_size=3, step_size=0.1)
    | newer_methods(adam_step_size=0.01)
)
# Of what happens now and then, so that it does within these tasks of 6 examples.
SOON = {
    **{"replacement_rate": 0.1, "maturity_threshold": 3},
    **{"redo_threshold": 0.5, "redo_every": 4},
    **{"snr_rejection_rate": 0.3, "snr_first_threshold": 3, "snr_lowest_threshold": 2},
    **{"swr_every": 4, "hare_every": 3, "hare_decay": 0.8},
}


def run_tasks(config):
    """What is measured in each of two tasks of the first seed."""
    problem, (settings, key) = permuted_mnist.make_problem(config), one_lane(config)

    @op_by_op
    def run_task(state, task, data):
        return problem.run_task(settings, state, key, task, data)

    state = op_by_op(lambda: problem.learner.init(settings, key))()
    found = {}
    for task in range(2):
        state, measured = run_task(state, jnp.int32(task), problem.data)
        found |= {f"{name} in task {task}": one for name, one in measured.items()}
    return found | {"params": state.params}


@pytest.mark.parametrize("name", CASES)
def test_two_tasks(name):
    config = complete(
        tiny_digits(
            cases={name: CASES[name]},
            examples_per_task=6,
            measured_examples=6,
            rank_method="svd",  # Small singular values of the other are rounding.
            step_size=0.03,
        )
    )
    config.update({field: SOON[field] for field in SOON.keys() & config.keys()})
    METHODS.check(name, run_tasks(make_cases(config)[name]))


def test_each_entry_is_checked():
    METHODS.check_names(CASES)

"""What is timed does the work it says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import one_lane, tiny_bits, tiny_digits, tiny_labels, tiny_pairs

from experiments import (
    changing_labels,
    continual_imagenet,
    permuted_mnist,
    slowly_changing_regression,
)
from experiments.run.cases import prepare_cases
from experiments.run.config import complete
from experiments.timing import programs

PROBLEMS = {
    "digits": (tiny_digits, permuted_mnist),
    "bits": (tiny_bits, slowly_changing_regression),
    "pairs": (tiny_pairs, continual_imagenet),
    "labels": (tiny_labels, changing_labels),
}


def backprop_case(name, **overrides):
    make_config, problem = PROBLEMS[name]
    config = make_config(**overrides)
    config.cases = {"backprop": {"method": "backprop"}}
    (case,) = prepare_cases(complete(config), problem.make_problem)
    return case


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "labels" else ())
        for name in PROBLEMS
    ],
)
def test_the_floor_makes_the_updates_of_backprop(name):
    """Two updates, so that momentum counts where there is any."""
    case = backprop_case(name)
    learner = case.problem.learner
    hyperparameters, key = one_lane(case.config)
    batches = programs.make_batches(case, 1, 2, case.config.batch_size)
    update = programs.hand_written_update(case.config, learner.layers)

    @jax.jit
    def both(state):
        carry = state.params, jax.tree.map(jnp.zeros_like, state.params)
        if not case.config.momentum:
            carry = state.params, ()
        for index in range(2):
            batch = [jnp.asarray(leaf[0, index]) for leaf in batches]
            state = learner.step(hyperparameters, state, *batch)[0]
            carry = update(carry, *batch)
        return state.params, carry[0]

    before = jax.jit(lambda: learner.init(hyperparameters, key))()
    wanted, actual = both(before)
    moved = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        layer, name = path[0].key, path[1].key
        np.testing.assert_allclose(
            actual[layer][name], leaf, rtol=1e-4, atol=1e-7, err_msg=str(path)
        )
        moved = max(moved, np.abs(leaf - before.params[layer][name]).max())
    assert moved > 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [("normalization", "layer"), ("activation", "crelu"), ("optimizer", "adam")],
)
def test_there_is_no_floor_of_what_is_not_plain(field, value):
    config = tiny_digits()
    assert programs.has_floor(config)
    config[field] = value
    assert not programs.has_floor(config)


def test_programs_make_as_many_updates_as_they_say_on_all_lanes():
    """Of three lanes, each counts its updates; a task has 40 / 1 of them."""
    case = backprop_case("digits", num_seeds=3)
    task, updates = programs.task_program(case), programs.updates_program(case, 50)
    for program, number in ((task, 40), (updates, 50)):
        program()
        program()
        assert program.updates == 3 * number
        state = getattr(program._carry, "learner", program._carry)
        np.testing.assert_array_equal(state.num_updates[:3], [2 * number] * 3)
        assert program.memory_bytes > 0
        assert program.compile_seconds > 0


def test_the_measures_are_those_before_a_task_and_teach_nothing(monkeypatch):
    """Ranks included, of all lanes; the number of examples is that of the run."""
    case, seen = backprop_case("digits", num_seeds=3), []
    measure = programs.layer_measures

    def spy(config, learner, hyperparameters, state, inputs, targets, task):
        found = measure(config, learner, hyperparameters, state, inputs, targets, task)
        seen.append((inputs.shape, "effective_rank" in found))
        return found

    monkeypatch.setattr(programs, "layer_measures", spy)
    program = programs.measures_program(case)
    program()
    assert set(seen) == {((case.config.measured_examples, 64), True)}
    np.testing.assert_array_equal(program._carry.num_updates[:3], [0, 0, 0])


def test_a_program_that_needs_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(programs.machine, "device_limit", lambda: 1000)
    program = jax.jit(lambda carry: carry + 1)
    with pytest.raises(MemoryError, match=r"needs [\d,]+ bytes on each device"):
        programs.Program(
            lambda carry: program.lower(carry).compile(), program, jnp.zeros(1000), 1
        )


def test_weights_are_moved_four_times():
    """64 inputs, 5 units, 10 outputs."""
    case = backprop_case("digits")
    params = 64 * 5 + 5 + 5 * 10 + 10
    assert programs.weight_bytes(case) == 4 * 4 * params


def test_a_task_of_epochs_is_shortened_to_whole_epochs():
    """Forty images a class make an epoch of 8 updates; 20 updates are 2.5 epochs."""
    config = tiny_pairs(train_per_class=40, batch_size=10)
    config.cases.linear.batch_size = 40
    cases = programs.shorten(config, 20).cases
    assert (cases.backprop.num_epochs, cases.linear.num_epochs) == (2, 10)
    assert programs.shorten(config, 1).cases.backprop.num_epochs == 1


def test_a_task_of_batches_is_shortened_to_so_many_and_the_config_left():
    config = tiny_digits()
    config.cases.backprop.batch_size = 4
    config.cases.backprop.rank_every = 3
    short = programs.shorten(config, 20)
    assert short.cases.backprop.examples_per_task == 80
    assert short.cases.continual_backprop.examples_per_task == 20
    assert (short.rank_every, short.cases.backprop.rank_every) == (0, 0)
    assert (short.measured_examples, config.measured_examples) == (2, 20)
    assert config.examples_per_task == 40
    assert math.isclose(short.step_size, config.step_size)

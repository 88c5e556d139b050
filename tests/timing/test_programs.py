"""What is timed does the work it says, and what is counted is what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import one_lane, tiny_bits, tiny_digits, tiny_pairs

from experiments import (
    continual_imagenet,
    permuted_mnist,
    slowly_changing_regression,
)
from experiments.run.cases import prepare_cases
from experiments.run.config import complete
from experiments.timing import floor, programs
from experiments.timing.batches import example_shape, make_batches

PROBLEMS = {
    "digits": (tiny_digits, permuted_mnist),
    "bits": (tiny_bits, slowly_changing_regression),
    "pairs": (tiny_pairs, continual_imagenet),
}


def backprop_case(name, **overrides):
    make_config, problem = PROBLEMS[name]
    config = make_config(**overrides)
    config.cases = {"backprop": {"method": "backprop"}}
    (case,) = prepare_cases(complete(config), problem.make_problem)
    return case


def test_a_product_of_matrices_costs_two_operations_a_term_and_its_matrices():
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 16))
    ]
    cost = programs.cost_of(jax.jit(lambda a, b: a @ b), *shapes)
    assert cost.operations == 2 * 64 * 32 * 16
    assert cost.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_a_sum_of_vectors_costs_an_operation_each():
    shape = jax.ShapeDtypeStruct((1000,), jnp.float32)
    cost = programs.cost_of(jax.jit(jnp.add), shape, shape)
    assert cost == (1000, 12_000)


def test_weights_are_moved_four_times():
    """64 inputs, 5 units, 10 outputs."""
    case = backprop_case("digits")
    params = 64 * 5 + 5 + 5 * 10 + 10
    assert programs.weight_bytes(case) == 4 * 4 * params


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_floor_makes_the_updates_of_backprop(name):
    """Two updates, so that momentum counts where there is any."""
    case = backprop_case(name)
    learner = case.problem.learner
    settings, key = one_lane(case.config)
    shape = example_shape(case.config, case.problem, programs.param_shapes(case))
    inputs, targets = make_batches(shape, case.config.batch_size, 2, jnp.uint32(3))
    update = floor.make_update(case.config, learner.layers)

    @jax.jit
    def both(state):
        carry = state.params, jax.tree.map(jnp.zeros_like, state.params)
        if not case.config.momentum:
            carry = state.params, ()
        for batch in zip(inputs, targets, strict=True):
            state = learner.step(settings, state, *batch)[0]
            carry = update(carry, *batch)
        return state.params, carry[0]

    before = jax.jit(lambda: learner.init(settings, key))()
    wanted, actual = both(before)
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        found = actual[path[0].key][path[1].key]
        np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-7, err_msg=str(path))
    moved = [
        np.abs(new - old).max()
        for new, old in zip(
            jax.tree.leaves(wanted), jax.tree.leaves(before.params), strict=True
        )
    ]
    assert max(moved) > 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [("normalization", "layer"), ("activation", "crelu"), ("optimizer", "adam")],
)
def test_there_is_no_floor_of_what_is_not_plain(field, value):
    config = tiny_digits()
    assert floor.has_floor(config)
    config[field] = value
    assert not floor.has_floor(config)


def test_a_loop_makes_as_many_updates_as_it_says_on_all_lanes():
    case = backprop_case("digits", num_seeds=3)
    program = programs.LoopProgram(
        case,
        1,
        init=lambda lane: lane.seed.astype(jnp.float32),
        update=lambda lane, carry, inputs, targets: carry + 1,
        batches=lambda lane: (jnp.zeros((4, 2)), jnp.zeros(4)),
        steps=50,
    )
    program()
    program()
    assert program.lane_steps == 150
    np.testing.assert_array_equal(program._carry[:3], [100, 101, 102])
    assert program.memory_bytes > 0
    assert program.compile_seconds > 0

"""A conditional that runs its work only if some lane of a vmap needs it."""

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax._xla import cond_any_lane

OPERAND = {"x": jnp.arange(6.0), "y": jnp.arange(6)}


def work(operand):
    needed = operand["x"] > 2
    return {
        "x": jnp.where(needed, jnp.sin(operand["x"]), 0.0),
        "y": operand["y"] + needed,
    }


def skip(operand):
    return {"x": jnp.zeros_like(operand["x"]), "y": operand["y"]}


def with_cond(operand):
    return lax.cond(operand["x"] > 2, work, skip, operand)


def with_any_lane(operand):
    return cond_any_lane(operand["x"] > 2, work, skip, operand)


def test_it_is_cond_without_lanes():
    for index in (0, 5):
        operand = jax.tree.map(lambda leaf, index=index: leaf[index], OPERAND)
        chex.assert_trees_all_equal(with_any_lane(operand), with_cond(operand))


def test_it_is_cond_under_vmap_and_nested_vmap():
    wanted = jax.vmap(with_cond)(OPERAND)
    chex.assert_trees_all_equal(jax.jit(jax.vmap(with_any_lane))(OPERAND), wanted)
    rows = jax.tree.map(lambda leaf: leaf.reshape(2, 3), OPERAND)
    nested = jax.jit(jax.vmap(jax.vmap(with_any_lane)))(rows)
    chex.assert_trees_all_equal(jax.tree.map(jnp.ravel, nested), wanted)


def test_lanes_that_share_an_operand_or_the_predicate():
    def lane(predicate, x, y):
        return cond_any_lane(
            predicate, lambda pair: pair[0] * pair[1], lambda pair: pair[1], (x, y)
        )

    x, y = jnp.arange(1.0, 4.0), jnp.float32(7.0)
    shared = jax.vmap(lane, in_axes=(None, 0, None))
    np.testing.assert_array_equal(shared(True, x, y), 7 * x)
    np.testing.assert_array_equal(shared(False, x, y), [7, 7, 7])


def test_typed_keys_pass_through():
    keys = jax.random.split(jax.random.key(0), 3)
    fold = jax.vmap(
        lambda flag, key: cond_any_lane(
            flag,
            lambda pair: jax.random.wrap_key_data(
                jnp.where(
                    pair[0],
                    jax.random.key_data(jax.random.fold_in(pair[1], 1)),
                    jax.random.key_data(pair[1]),
                )
            ),
            lambda pair: pair[1],
            (flag, key),
        )
    )
    new = fold(jnp.array([False, True, False]), keys)
    same = jax.random.key_data(new) == jax.random.key_data(keys)
    assert same.all(axis=1).tolist() == [True, False, True]


@pytest.fixture
def counted():
    """A function of predicates, and the list of lanes for which the work was run."""
    runs = []

    def lane(predicate):
        def counted_work(predicate):
            jax.debug.callback(lambda value: runs.append(bool(value)), predicate)
            return jnp.where(predicate, 1, 0)

        return cond_any_lane(
            predicate, counted_work, lambda predicate: jnp.int32(0), predicate
        )

    return lane, runs


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_work_runs_only_if_a_lane_needs_it(counted, depth):
    function, runs = counted
    for _ in range(depth):
        function = jax.vmap(function)
    function = jax.jit(function)
    shape = (3, 2)[:depth]
    nobody = jnp.zeros(shape, bool)
    np.testing.assert_array_equal(function(nobody), 0)
    jax.effects_barrier()
    assert runs == []

    somebody = nobody.at[(-1,) * depth].set(True)
    np.testing.assert_array_equal(function(somebody), somebody)
    jax.effects_barrier()
    assert sorted(runs) == sorted(np.ravel(somebody).tolist())


def test_a_vmapped_cond_would_always_run_the_work():
    """The reason for all this; if it fails, `cond_any_lane` is no longer needed."""
    runs = []

    def lane(predicate):
        def counted_work(predicate):
            jax.debug.callback(lambda: runs.append(1))
            return 1

        return lax.cond(predicate, counted_work, lambda predicate: 0, predicate)

    jax.jit(jax.vmap(lane))(jnp.zeros(3, bool))
    jax.effects_barrier()
    assert runs

"""What wraps the transform in optax leaves what it does as it is, or is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

UNITS = tiny.UNITS[:1]
NUM_STEPS = 8
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make():
    return cbp_jax.continual_backprop(
        optax.sgd(0.1, momentum=0.9),
        UNITS,
        replacement_rate=0.1,
        maturity_threshold=1,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )


@functools.cache
def alone(skip=None):
    """Params and state at the end, without one of the steps."""
    steps = np.array([step for step in range(NUM_STEPS) if step != skip])
    found = tiny.loop(
        make(),
        PARAMS,
        jax.tree.map(lambda leaf: leaf[steps], GRADS),
        jax.tree.map(lambda leaf: leaf[steps], FEATURES),
    )[-1]
    assert found[1].num_replaced["dense_0"] > 2
    return found


def check(params, state, skip=None):
    wanted_params, wanted = alone(skip)
    tiny.assert_close(params, wanted_params)
    tiny.assert_equal(state.num_replaced, wanted.num_replaced)
    tiny.assert_close(state.units, wanted.units)


def with_frozen(tree, value):
    """A tree with a layer that the wrapper keeps from the transform."""
    return {**tree, "embedding": {"table": value}}


IS_TRAINED = with_frozen(jax.tree.map(lambda _: True, PARAMS), False)
LABELS = jax.tree.map(lambda is_trained: "cbp" if is_trained else "frozen", IS_TRAINED)


@pytest.mark.parametrize("name", ["masked", "partition"])
def test_around_a_part_of_the_params(name):
    if name == "masked":
        tx = optax.masked(make(), IS_TRAINED)
    else:
        tx = optax.partition({"cbp": make(), "frozen": optax.set_to_zero()}, LABELS)
    params = with_frozen(PARAMS, jnp.ones((2, 3)))
    grads = with_frozen(GRADS, jnp.ones((NUM_STEPS, 2, 3)))
    params, state = tiny.loop(tx, params, grads, FEATURES)[-1]
    table = params.pop("embedding")["table"]
    if name == "masked":
        check(params, state.inner_state)
        np.testing.assert_array_equal(table, 1 + NUM_STEPS)  # Gradients are added.
    else:
        check(params, state.inner_states["cbp"].inner_state)
        np.testing.assert_array_equal(table, 1)


def test_apply_if_finite_around_forgets_the_whole_update():
    skip = 5
    grads = jax.tree.map(lambda leaf: leaf.at[skip].set(jnp.nan), GRADS)
    tx = optax.apply_if_finite(make(), max_consecutive_errors=3)
    params, state = tiny.loop(tx, PARAMS, grads, FEATURES)[-1]
    check(params, state.inner_state, skip)


def test_what_comes_before_it_in_a_chain():
    """Gradients are clipped before they reach it."""
    tx = optax.chain(optax.scale(0.5), optax.scale(2.0), make())
    params, states = tiny.loop(tx, PARAMS, GRADS, FEATURES)[-1]
    check(params, states[-1])


def test_what_scales_updates_behind_it_leaves_reborn_units_loud():
    """Hence the documents: nothing that scales updates may come behind."""
    tx = optax.chain(make(), optax.scale(0.5))
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    loud = []
    for params, states in history:
        reborn = tiny.mask_of(states[0].replaced["dense_0"], 6)
        loud.append(np.asarray(params["dense_1"]["kernel"])[reborn].any())
    assert any(loud)

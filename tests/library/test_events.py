"""Schedules, what happens at events, fresh params and fresh optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers.events import EventState, act_at, at, every
from cbp_jax.optimizers.resets_at_events import reset_optimizer_at, reset_params_at
from cbp_jax.optimizers.shrink_and_perturb_at_events import (
    shrink_and_perturb_at_events,
)

NUM_STEPS = 5
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def init_fn(key):
    """Kernels U(1, 2), biases 7: what is drawn can be told from what is not."""

    def draw(path, leaf):
        if leaf.ndim < 2:
            return jnp.full_like(leaf, 7)
        leaf_key = jax.random.fold_in(key, leaf.size)
        return jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, 1, 2)

    return jax.tree_util.tree_map_with_path(draw, PARAMS)


def double(params, key):
    del key
    return jax.tree.map(lambda leaf: 2 * leaf, params)


def events_of(schedule, length=9):
    return [index for index in range(1, length + 1) if schedule(jnp.int32(index))]


def test_schedules():
    assert events_of(every(1), 3) == [1, 2, 3]
    assert events_of(every(3)) == [3, 6, 9]
    assert events_of(at(1, 5)) == [1, 5]
    assert events_of(at()) == []
    traced = jax.jit(lambda period, count: (every(period)(count), at(period)(count)))
    assert np.array(traced(jnp.int32(4), jnp.int32(8))).tolist() == [True, False]
    assert np.array(traced(jnp.int32(4), jnp.int32(4))).tolist() == [True, True]
    with pytest.raises(ValueError, match=r"num_updates must be in \[1, inf\], got 0"):
        every(0)
    with pytest.raises(ValueError, match=r"counts must be in \[1, inf\], got -2"):
        at(3, -2)


def test_params_are_replaced_after_the_updates_of_the_schedule():
    with jax.enable_x64(True):
        params = tiny.make_params(np.float64)
        grads = tiny.make_grads(NUM_STEPS, params)
        tx = optax.chain(optax.sgd(0.1), act_at(at(2, 3), double))
        wanted, all_grads = tiny.by_path(params), tiny.by_path(grads)
        for step, (actual, _) in enumerate(tiny.loop(tx, params, grads, FEATURES), 1):
            for path, leaf in tiny.by_path(actual).items():
                moved = wanted[path] - 0.1 * all_grads[path][step - 1]
                wanted[path] = 2 * moved if step in (2, 3) else moved
                np.testing.assert_allclose(leaf, wanted[path], rtol=1e-12)


def test_nothing_is_run_between_events_and_other_lanes_pass_bit_for_bit():
    runs = []

    def act(params, key):
        jax.debug.callback(lambda: runs.append(1))
        return double(params, key)

    def lane(period):
        state = EventState(jnp.int32(2), None)
        return act_at(every(period), act).update(PARAMS, state, PARAMS)[0]

    lanes = jax.jit(jax.vmap(lane))
    tiny.assert_equal(tiny.at(lanes(jnp.array([2, 5])), 0), PARAMS)
    jax.effects_barrier()
    assert not runs
    updates = lanes(jnp.array([3, 5]))
    jax.effects_barrier()
    assert runs
    tiny.assert_equal(tiny.at(updates, 1), PARAMS)
    tripled = jax.tree.map(lambda leaf: 3 * leaf, PARAMS)
    tiny.assert_close(tiny.at(updates, 0), tripled)


def blended(period, shrink, key):
    """Params and state after all steps, with traced schedule, strength and key."""
    options = {"shrink": shrink, "perturb": 0.5, "key": key}
    link = shrink_and_perturb_at_events(every(period), init_fn, **options)
    tx = optax.chain(optax.sgd(0.1), link)
    params, states = tiny.run(tx, PARAMS, GRADS, FEATURES)
    return params, jax.random.key_data(states[1].rng_key)


def test_lanes_are_solo_runs():
    periods, shrinks = jnp.array([2, 3, 9]), jnp.array([0.2, 0.9, 0.5])
    keys = jax.random.split(tiny.KEY, 3)
    lanes = jax.jit(jax.vmap(blended))(periods, shrinks, keys)
    solo = jax.jit(blended)
    for index in range(3):
        wanted = solo(periods[index], shrinks[index], keys[index])
        tiny.assert_close(tiny.at(lanes, index), wanted)
    # Keys change at events only, whatever the lanes beside.
    changes = np.any(lanes[1][:, 1:] != lanes[1][:, :-1], axis=2)
    assert changes.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0] * 4]


def run_blend(shrink, perturb, key=tiny.KEY):
    """Params after each step and gradients, in float64 by path; events at 2 and 4."""
    with jax.enable_x64(True):
        params = tiny.make_params(np.float64)
        grads = tiny.make_grads(4, params)
        link = shrink_and_perturb_at_events(
            every(2),
            lambda key: optax.tree.random_like(key, params),
            **{"shrink": shrink, "perturb": perturb, "key": key},
        )
        tx = optax.chain(optax.sgd(0.1), link)
        history = tiny.loop(tx, params, grads, tiny.make_features(4))
        return [tiny.by_path(params) for params, _ in history], tiny.by_path(grads)


def test_shrink_and_perturb_is_the_equation():
    fresh, grads = run_blend(0.0, 1.0)  # The fresh params themselves.
    actual, _ = run_blend(0.7, 0.3)
    for path, grad in grads.items():
        between = actual[1][path] - 0.1 * grad[2]
        np.testing.assert_allclose(actual[2][path], between, rtol=1e-12)
        moved = actual[2][path] - 0.1 * grad[3]
        wanted = 0.7 * moved + 0.3 * fresh[3][path]
        np.testing.assert_allclose(actual[3][path], wanted, rtol=1e-12)
    other_key, _ = run_blend(0.0, 1.0, jax.random.key(1))
    draws = [
        np.concatenate([leaf.ravel() for leaf in params.values()])
        for params in (fresh[1], fresh[3], other_key[1])
    ]
    np.testing.assert_allclose(np.std(draws, axis=1), 1, atol=0.25)
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shrink_1_and_perturb_0_is_off_bit_for_bit(dtype):
    params = tiny.make_params(dtype)
    tx = shrink_and_perturb_at_events(
        every(1), init_fn, shrink=1.0, perturb=0.0, key=tiny.KEY
    )
    grads = tiny.at(tiny.make_grads(1, params), 0)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    tiny.assert_equal(updates, grads)


def test_bfloat16_and_stable_structure():
    params = tiny.make_params(jnp.bfloat16)
    reset = reset_params_at(every(1), init_fn, key=tiny.KEY)
    blend = shrink_and_perturb_at_events(every(2), init_fn, key=tiny.KEY)
    tx = reset_optimizer_at(optax.chain(optax.trace(0.9), reset, blend), every(1))
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        updates, new_state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], params, state, params
        )
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    for leaf in jax.tree.leaves((updates, new_state.base_state[0])):
        assert leaf.dtype == jnp.bfloat16
    bias = optax.apply_updates(params, updates)["head"]["bias"]
    np.testing.assert_allclose(np.asarray(bias, np.float32), 7, rtol=2**-7)
    # The trace belongs to the params, counts and keys do not.
    owners = optax.tree.map_params(tx, str, state, transform_non_params=lambda _: 0)
    assert [owner == 0 for owner in jax.tree.leaves(owners)] == [False] * 6 + [True] * 5


def test_multi_steps_and_injected_hyperparams():
    link = optax.inject_hyperparams(
        shrink_and_perturb_at_events, static_args=("schedule", "init_fn", "key")
    )(every(2), init_fn, shrink=0.5, perturb=0.0, key=tiny.KEY)
    tx = optax.MultiSteps(optax.chain(optax.sgd(0.0), link), 2)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    for step, factor in enumerate([1, 1, 1, 0.5, 0.5]):
        wanted = jax.tree.map(lambda leaf, factor=factor: factor * leaf, PARAMS)
        tiny.assert_close(history[step][0], wanted)


def test_layers_are_drawn_afresh():
    moved = tiny.by_path(tiny.at(GRADS, 0))
    for layers, drawn in {
        "head": {"head/kernel", "head/bias"},
        ("dense_1", "head/bias"): {"dense_1/kernel", "dense_1/bias", "head/bias"},
        (): set(),
        None: moved.keys(),
    }.items():
        tx = reset_params_at(at(1), init_fn, layers=layers, key=tiny.KEY)
        updates, _ = tx.update(tiny.at(GRADS, 0), tx.init(PARAMS), PARAMS)
        new = tiny.by_path(optax.apply_updates(PARAMS, updates))
        for path, update in tiny.by_path(updates).items():
            if path not in drawn:
                np.testing.assert_array_equal(update, moved[path], err_msg=path)
            elif path.endswith("bias"):
                np.testing.assert_allclose(new[path], 7, rtol=1e-6)
            else:
                assert (new[path] > 0.999).all() and (new[path] < 2.001).all()
                assert new[path].std() > 0.1
    with pytest.raises(ValueError, match="layers names 'dense', which is not in"):
        reset_params_at(at(1), init_fn, layers="dense", key=tiny.KEY).init(PARAMS)


def test_an_optimizer_starts_afresh_after_an_event():
    schedule = optax.linear_schedule(0.1, 0.01, 3)
    base = optax.adam(schedule)
    tx = reset_optimizer_at(base, at(3))
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    before, _ = tiny.loop(base, PARAMS, GRADS, FEATURES)[2]
    tiny.assert_close(history[2][0], before)
    tiny.assert_equal(history[2][1].base_state, base.init(PARAMS))
    grads, features = jax.tree.map(lambda leaf: leaf[3:], (GRADS, FEATURES))
    after = tiny.loop(base, history[2][0], grads, features)[1]
    tiny.assert_close((history[4][0], history[4][1].base_state), after)
    assert int(history[4][1].events.count) == NUM_STEPS


def optimizer_lane(event, rate):
    """State of an optimizer whose `init` has traced numbers and copies params."""
    base = optax.chain(
        optax.inject_hyperparams(optax.adam)(rate), optax.contrib.schedule_free_sgd(0.1)
    )
    tx = reset_optimizer_at(base, at(event))
    return tiny.run(tx, PARAMS, GRADS, FEATURES)


def test_lanes_of_fresh_optimizers_are_solo_runs():
    events, rates = jnp.array([2, 4]), jnp.array([0.1, 0.2])
    params, states = lanes = jax.jit(jax.vmap(optimizer_lane))(events, rates)
    solo = jax.jit(optimizer_lane)
    for index in range(2):
        tiny.assert_close(tiny.at(lanes, index), solo(events[index], rates[index]))
    adam, schedule_free = states.base_state
    np.testing.assert_array_equal(
        adam.inner_state[0].count, [[1, 0, 1, 2, 3], [1, 2, 3, 0, 1]]
    )
    # The second copy of the params is one of the params after the update.
    copy, bias = schedule_free.z["head"]["bias"], params["head"]["bias"]
    np.testing.assert_allclose(copy[[0, 1], [1, 3]], bias[[0, 1], [1, 3]], rtol=1e-5)


def test_a_full_reset_keeps_counts_of_events_and_keys():
    schedule = at(2, 3)  # Were the counts reset, the second would not come.
    fresh_params = reset_params_at(schedule, init_fn, key=tiny.KEY)
    tx = reset_optimizer_at(optax.chain(optax.adam(0.1), fresh_params), schedule)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    draws = []
    for step in (1, 2):
        params, state = history[step]
        draws.append(np.asarray(params["head"]["kernel"]))
        assert (draws[-1] > 0.999).all()
        np.testing.assert_allclose(params["head"]["bias"], 7, rtol=1e-6)
        tiny.assert_equal(state.base_state[0], optax.adam(0.1).init(PARAMS))
        assert int(state.base_state[1].count) == step + 1
    assert np.abs(draws[0] - draws[1]).max() > 0.1
    tiny.assert_equal(history[3][1].base_state[0][0].count, jnp.int32(1))


def test_events_in_the_base_optimizer_of_continual_backprop_and_around_it():
    head = reset_params_at(at(3), init_fn, layers="head", key=tiny.KEY)
    base = optax.chain(optax.sgd(0.1), head)
    with_units = functools.partial(
        cbp_jax.continual_backprop,
        base,
        tiny.UNITS,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    plain, _ = tiny.loop(base, PARAMS, GRADS, FEATURES)[-1]
    tx = with_units(replacement_rate=0.0)
    tiny.assert_close(tiny.loop(tx, PARAMS, GRADS, FEATURES)[-1][0], plain)
    tx = reset_optimizer_at(with_units(replacement_rate=0.4), at(3))
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    ages = [state.base_state.units["dense_0"].age.max() for _, state in history]
    assert [int(age) for age in ages[2:4]] == [0, 1] and ages[1] > 0
    keys = [jax.random.key_data(state.base_state.rng_key) for _, state in history]
    assert (keys[2] != jax.random.key_data(tiny.FAST_KEY)).any()


def test_errors():
    for tx in (act_at(every(1), double), reset_optimizer_at(optax.sgd(0.1), at())):
        with pytest.raises(ValueError, match="Events need the params"):
            tx.update(PARAMS, tx.init(PARAMS))
    tx = reset_params_at(every(1), lambda key: {"params": PARAMS}, key=tiny.KEY)
    with pytest.raises(ValueError, match=r"must return a tree like.*params/head/bias"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)

"""Schedules, and what `act_at` does at their updates and not in between."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import CASES, GRADS, PARAMS, make
import pytest
import tiny

from cbp_jax import optimizers
from cbp_jax.optimizers import EventState, act_at, at, every

NUM_STEPS = 5


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
        history = tiny.loop(tx, params, grads, tiny.make_features(NUM_STEPS))
        wanted, all_grads = tiny.by_path(params), tiny.by_path(grads)
        for step, (actual, _) in enumerate(history, 1):
            for path, leaf in tiny.by_path(actual).items():
                moved = wanted[path] - 0.1 * all_grads[path][step - 1]
                wanted[path] = 2 * moved if step in (2, 3) else moved
                np.testing.assert_allclose(leaf, wanted[path], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_entries_that_an_event_leaves_alone_keep_their_updates_bit_for_bit(dtype):
    """Also where params are rounded: compared is what they are after the update."""
    params, grads = ({"a": leaf.astype(dtype)} for leaf in rows())
    tx = act_at(every(1), lambda params, key: {"a": params["a"].at[0].set(7)})
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"][1:], grads["a"][1:])
    new = optax.apply_updates(params, updates)["a"][0].astype(np.float32)
    np.testing.assert_allclose(new, 7, rtol=2.0**-7 if dtype == "bfloat16" else 1e-6)


def rows():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 3, 50)), np.float32)


def noise(params, key):
    return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)


@jax.jit
def keys_and_params(period, key):
    """Key data and params after each step; with a traced schedule and key."""
    params = {"a": jnp.zeros(50)}
    tx = act_at(every(period), noise, key=key)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (state.rng_key, params["a"])

    return jax.lax.scan(step, (params, tx.init(params)), None, length=NUM_STEPS)[1]


def test_every_event_has_a_key_of_its_own_and_every_lane_its_own_events():
    keys = jax.random.split(tiny.KEY, 3)
    periods = jnp.array([1, 2, 9])
    key_data, params = jax.vmap(keys_and_params)(periods, keys)
    for lane in range(3):
        solo = keys_and_params(periods[lane], keys[lane])
        np.testing.assert_array_equal(key_data[lane], solo[0])
        np.testing.assert_allclose(params[lane], solo[1], rtol=1e-6)
    # Keys change at events only, whatever the lanes beside.
    before = np.concatenate([jax.random.key_data(keys)[:, None], key_data], axis=1)
    changes = np.any(before[:, 1:] != before[:, :-1], axis=2).astype(int)
    assert changes.tolist() == [[1] * 5, [0, 1, 0, 1, 0], [0] * 5]
    draws = np.concatenate([params[0], params[1, [1, 3]]])
    assert np.abs(np.corrcoef(draws) - np.eye(7)).max() < 0.6


def test_nothing_is_run_between_events_and_other_lanes_pass_bit_for_bit():
    runs = []

    def act(params, key):
        jax.debug.callback(lambda: runs.append(1))
        return double(params, key)

    def lane(period):
        state = EventState(jnp.int32(2), None)
        return act_at(every(period), act).update(PARAMS, state, PARAMS)[0]

    lanes = jax.jit(jax.vmap(lane))
    assert " conditional(" in lanes.lower(jnp.arange(1, 3)).compile().as_text()
    tiny.assert_equal(tiny.at(lanes(jnp.array([2, 5])), 0), PARAMS)
    jax.effects_barrier()
    assert not runs
    updates = lanes(jnp.array([3, 5]))
    jax.effects_barrier()
    assert runs
    tiny.assert_equal(tiny.at(updates, 1), PARAMS)
    tripled = jax.tree.map(lambda leaf: 3 * leaf, PARAMS)
    tiny.assert_close(tiny.at(updates, 0), tripled)


# What each event's work consists of, and nothing else in an update.
WORK = {
    "act_at": {"div"},
    "dash": {"sqrt"},
    "fire": {"dot_general", "scan"},
    "hare_and_tortoise": {"ne"},
    "reset_params_at": {"erf_inv", "random_bits"},
    "reset_optimizer_at": {"tan"},
    "shrink_and_perturb_at_events": {"erf_inv", "random_bits"},
    "selective_weight_reinitialization": {"erf_inv", "random_bits", "sort"},
}


# Its events set one number, by a select.
WITHOUT_WORK = {"reset_adam_count_at"}


def make_event(name):
    if name != "reset_optimizer_at":
        return make(name)
    base = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.tan, params), lambda *args: args[:2]
    )
    return optimizers.reset_optimizer_at(base, every(2))


def test_all_events_are_known_here():
    scheduled = {name for name in CASES if "schedule" in CASES[name].fixed}
    assert WORK.keys() | WITHOUT_WORK == scheduled


@pytest.mark.parametrize("num_vmaps", [0, 1, 2])
@pytest.mark.parametrize("name", WORK)
def test_an_update_between_events_does_none_of_their_work(name, num_vmaps):
    tx = make_event(name)
    state = tx.init(PARAMS)
    update, arguments = tx.update, (tiny.at(GRADS, 0), state, PARAMS)
    for _ in range(num_vmaps):
        update = jax.vmap(update)
        arguments = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), arguments)
    found = set(tiny.primitives(jax.make_jaxpr(update)(*arguments).jaxpr))
    assert WORK[name] <= {primitive for primitive, is_inside in found if is_inside}
    assert not WORK[name] & {
        primitive for primitive, is_inside in found if not is_inside
    }

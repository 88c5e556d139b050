"""Hare and tortoise against a NumPy loop, its off values and its composition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers.events import at, every
from cbp_jax.optimizers.hare_and_tortoise import hare_and_tortoise, slow_params
from cbp_jax.optimizers.resets_at_events import reset_optimizer_at

NUM_STEPS = 5
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def chain(schedule, decay):
    return optax.chain(optax.sgd(0.1), hare_and_tortoise(schedule, decay=decay))


def test_it_is_the_equation():
    with jax.enable_x64(True):
        params = tiny.make_params(np.float64)
        grads = tiny.make_grads(NUM_STEPS, params)
        history = tiny.loop(chain(every(2), 0.9), params, grads, FEATURES)
        fast, slow = tiny.by_path(params), tiny.by_path(params)
        for step, (actual, state) in enumerate(history, 1):
            fasts, slows = tiny.by_path(actual), tiny.by_path(slow_params(state))
            for path, grad in tiny.by_path(grads).items():
                fast[path] = fast[path] - 0.1 * grad[step - 1]
                slow[path] = 0.9 * slow[path] + 0.1 * fast[path]
                if step % 2 == 0:
                    fast[path] = slow[path]
                np.testing.assert_allclose(fasts[path], fast[path], rtol=1e-11)
                np.testing.assert_allclose(slows[path], slow[path], rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("schedule", "decay"), [(every(1), 0.0), (at(), 0.9)])
def test_without_events_or_slowness_updates_pass_bit_for_bit(schedule, decay, dtype):
    params = tiny.make_params(dtype)
    tx = hare_and_tortoise(schedule, decay=decay)
    update, state = jax.jit(tx.update), tx.init(params)
    for step in range(2):
        grads = tiny.at(tiny.make_grads(2, params), step)
        updates, state = update(grads, state, params)
        tiny.assert_equal(updates, grads)
    moved = optax.apply_updates(params, grads)["head"]["bias"]
    if decay == 0:
        wanted = moved.astype(jnp.float32)
        np.testing.assert_array_equal(state.slow["head"]["bias"], wanted)


def run(event, decay):
    return tiny.run(chain(at(event, 5), decay), PARAMS, GRADS, FEATURES)


def test_lanes_are_solo_runs():
    events, decays = jnp.array([1, 2, 2]), jnp.array([0.5, 0.5, 0.9])
    lanes, solo = jax.jit(jax.vmap(run))(events, decays), jax.jit(run)
    for index in range(3):
        tiny.assert_close(tiny.at(lanes, index), solo(events[index], decays[index]))
    params, states = lanes
    distance = jax.tree.map(lambda fast, slow: fast - slow, params, slow_params(states))
    together = np.abs(distance["dense_0"]["kernel"]).max(axis=(2, 3)) < 1e-6
    assert together.tolist() == [
        [True, False, False, False, True],
        [False, True, False, False, True],
        [False, True, False, False, True],
    ]


def test_the_tortoise_of_bfloat16_params_is_float32():
    params = jax.tree.map(jnp.ones_like, tiny.make_params(jnp.bfloat16))
    tx = hare_and_tortoise(every(2))
    state = tx.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    with jax.numpy_dtype_promotion("strict"):
        updates, state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], ones, state, params
        )
    for leaf in jax.tree.leaves(state.slow):
        assert leaf.dtype == jnp.float32
        # In bfloat16, or with a decay that is rounded to it, this would be 1.
        np.testing.assert_allclose(leaf, 1.001, rtol=1e-6)
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == jnp.bfloat16
    owners = optax.tree.map_params(
        tx, lambda _: 1, state, transform_non_params=lambda _: 0
    )
    assert jax.tree.leaves(owners) == [0] + [1] * 6


def test_the_state_survives_donated_params():
    params = jax.tree.map(jnp.copy, PARAMS)
    tx = chain(every(2), 0.9)
    step = jax.jit(lambda params, state: tx.update(params, state, params)[0])
    state = tx.init(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    tiny.assert_equal(slow_params(state), PARAMS)
    assert np.isfinite(step(PARAMS, state)["head"]["bias"]).all()


def test_slow_weights_of_reborn_units_are_their_fresh_ones():
    tx = cbp_jax.continual_backprop(
        chain(at(), 0.5),
        tiny.UNITS,
        replacement_rate=0.3,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    base = tiny.loop(chain(at(), 0.5), PARAMS, GRADS, FEATURES)
    num_reborn = 0
    for (params, state), (_, base_state) in zip(history, base, strict=True):
        reborn = tiny.entries_of(state.replaced)
        fast, slow = tiny.by_path(params), tiny.by_path(slow_params(state))
        for path, mask in reborn.items():
            np.testing.assert_array_equal(slow[path][mask], fast[path][mask])
            if not num_reborn:
                wanted = tiny.by_path(slow_params(base_state))[path]
                np.testing.assert_allclose(slow[path][~mask], wanted[~mask], rtol=1e-5)
        num_reborn += sum(mask.sum() for mask in reborn.values())
    assert num_reborn > 0


def test_multi_steps_injection_and_a_fresh_optimizer():
    link = optax.inject_hyperparams(hare_and_tortoise, static_args="schedule")(
        every(2), decay=0.5
    )
    once = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), GRADS)
    features = tiny.make_features(2 * NUM_STEPS)
    tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), link), 2)
    history = tiny.loop(tx, PARAMS, once, features)
    plain = tiny.loop(chain(every(2), 0.5), PARAMS, GRADS, FEATURES)
    for step in range(NUM_STEPS):
        tiny.assert_close(history[2 * step + 1][0], plain[step][0])
        tiny.assert_close(
            *(
                slow_params(run[index][1])
                for run, index in ((history, 2 * step + 1), (plain, step))
            )
        )
    tx = reset_optimizer_at(chain(every(2), 0.5), at(3))
    params, state = tiny.loop(tx, PARAMS, GRADS, FEATURES)[2]
    tiny.assert_equal(slow_params(state), params)
    assert int(state.base_state[1].events.count) == 3


def test_errors():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        hare_and_tortoise(every(1), decay=1.5)
    tx = hare_and_tortoise(every(1))
    with pytest.raises(ValueError, match="Events need the params"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="holds 0 states of hare_and_tortoise"):
        slow_params(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="holds 2 states of hare_and_tortoise"):
        slow_params((tx.init(PARAMS), tx.init(PARAMS)))

"""Hare and tortoise against a NumPy loop, its precision and reborn units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers._events import at, every
from cbp_jax.optimizers._hare_and_tortoise import hare_and_tortoise, slow_params
from cbp_jax.optimizers._resets_at_events import reset_optimizer_at

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


def test_without_slowness_bfloat16_updates_pass_bit_for_bit():
    params = tiny.make_params(jnp.bfloat16)
    tx = hare_and_tortoise(every(1), decay=0.0)
    grads = tiny.at(tiny.make_grads(1, params), 0)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    tiny.assert_equal(updates, grads)
    moved = optax.apply_updates(params, grads)["head"]["bias"]
    np.testing.assert_array_equal(state.slow["head"]["bias"], moved.astype(np.float32))


def test_the_tortoise_of_bfloat16_params_is_float32():
    params = {"bias": jnp.ones(3, jnp.bfloat16)}
    tx = hare_and_tortoise(every(2))
    _, state = tx.update(params, tx.init(params), params)
    assert state.slow["bias"].dtype == jnp.float32
    # In bfloat16, or with a decay that is rounded to it, this would be 1.
    np.testing.assert_allclose(state.slow["bias"], 1.001, rtol=1e-6)


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


def test_a_fresh_optimizer_begins_with_the_slow_params_at_the_fast_ones():
    tx = reset_optimizer_at(chain(every(2), 0.5), at(3))
    params, state = tiny.loop(tx, PARAMS, GRADS, FEATURES)[2]
    tiny.assert_equal(slow_params(state), params)
    assert int(state.base_state[1].events.count) == 3


def test_errors():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        hare_and_tortoise(every(1), decay=1.5)
    tx = hare_and_tortoise(every(1))
    with pytest.raises(ValueError, match="contains 0 states of hare_and_tortoise"):
        slow_params(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="contains 2 states of hare_and_tortoise"):
        slow_params((tx.init(PARAMS), tx.init(PARAMS)))

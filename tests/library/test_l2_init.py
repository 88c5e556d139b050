"""L2 init: the equation, strength 0, and theta_0 through everything around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers.l2_init import l2_init

NUM_STEPS = 3
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make(strength):
    return optax.chain(l2_init(strength), optax.sgd(0.1))


@functools.cache
def run(strength):
    return jax.jit(lambda: tiny.run(make(strength), PARAMS, GRADS, FEATURES))()


def test_it_is_the_equation():
    with jax.enable_x64(True):
        params = tiny.make_params(np.float64)
        grads = tiny.make_grads(NUM_STEPS, params)
        history = tiny.loop(make(0.3), params, grads, FEATURES)
        for path, initial in tiny.by_path(params).items():
            param = initial.copy()
            for grad in tiny.by_path(grads)[path]:
                param = param - 0.1 * (grad + 0.3 * (param - initial))
            actual = tiny.by_path(history[-1][0])[path]
            np.testing.assert_allclose(actual, param, rtol=1e-12, err_msg=path)


def test_strength_zero_is_the_base_optimizer_bit_for_bit():
    base = jax.jit(lambda: tiny.run(optax.sgd(0.1), PARAMS, GRADS, FEATURES))()
    tiny.assert_equal(run(0.0)[0], base[0])
    with pytest.raises(AssertionError):
        tiny.assert_equal(run(0.3)[0], base[0])


def test_strength_zero_lets_a_diverged_param_be():
    params = {"bias": jnp.array([np.inf, 1.0])}
    grads = {"bias": jnp.array([0.5, -0.0])}
    tx = l2_init(0.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], grads["bias"])
    assert np.signbit(updates["bias"][1])


def test_lanes_are_solo_runs():
    lanes = jax.jit(
        jax.vmap(lambda strength: tiny.run(make(strength), PARAMS, GRADS, FEATURES)[0])
    )(jnp.array([0.0, 0.3]))
    for index, strength in enumerate([0.0, 0.3]):
        tiny.assert_close(tiny.at(lanes, index), run(strength)[0])


def test_bfloat16_and_structure_are_kept():
    params = tiny.make_params(jnp.bfloat16)
    tx = l2_init(jnp.float32(0.3))
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        updates, next_state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], params, state, params
        )
    for leaf in jax.tree.leaves((updates, next_state)):
        assert leaf.dtype == jnp.bfloat16
    tiny.assert_equal(next_state.initial_params, params)


def test_multi_steps_and_injected_hyperparams():
    injected = optax.inject_hyperparams(l2_init)(strength=0.3)
    tx = optax.MultiSteps(optax.chain(injected, optax.sgd(0.1)), 2)
    (_, _), (params, _) = tiny.loop(
        tx, PARAMS, jax.tree.map(lambda leaf: leaf[:2], GRADS), FEATURES
    )
    mean = jax.tree.map(lambda leaf: leaf[:2].mean(0), GRADS)
    # theta is theta_0 at the first update, so there is no pull yet.
    wanted = jax.tree.map(lambda param, grad: param - 0.1 * grad, PARAMS, mean)
    tiny.assert_close(params, wanted)


@pytest.mark.parametrize("keep_state", [(), ("initial_params",)])
def test_the_origin_of_reborn_units(keep_state):
    tx = cbp_jax.continual_backprop(
        make(0.3),
        tiny.UNITS,
        replacement_rate=0.4,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
        keep_state=keep_state,
    )
    ((params, state),) = tiny.loop(
        tx, PARAMS, jax.tree.map(lambda leaf: leaf[:1], GRADS), FEATURES
    )
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.any()
    origin = state.base_state[0].initial_params["dense_0"]["kernel"]
    wanted = (PARAMS if keep_state else params)["dense_0"]["kernel"]
    np.testing.assert_array_equal(origin[:, reborn], wanted[:, reborn])
    initial = PARAMS["dense_0"]["kernel"]
    np.testing.assert_array_equal(origin[:, ~reborn], initial[:, ~reborn])


def test_it_needs_params():
    tx = l2_init(0.1)
    with pytest.raises(ValueError, match="l2_init needs the params"):
        tx.update(PARAMS, tx.init(PARAMS))

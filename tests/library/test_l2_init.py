"""L2 init: the equation, diverged params, and the origin of reborn units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers._l2_init import l2_init

NUM_STEPS = 3
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make(strength):
    return optax.chain(l2_init(strength), optax.sgd(0.1))


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


def test_strength_zero_lets_a_diverged_param_be():
    params = {"bias": jnp.array([np.inf, 1.0])}
    grads = {"bias": jnp.array([0.5, -0.0])}
    tx = l2_init(0.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], grads["bias"])
    assert np.signbit(updates["bias"][1])


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

"""UPGD against the equations, its variants, noise and composition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers.upgd import upgd

NUM_STEPS = 4
RATE, DECAY, NOISE, SHRINK = 0.1, 0.9, 0.5, 0.2
PARAMS = {"head": tiny.make_params()["head"]}
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make(noise_scale=NOISE, **options):
    options = {
        "decay_rate": DECAY,
        "weight_decay": SHRINK,
        "key": tiny.FAST_KEY,
    } | options
    return upgd(RATE, noise_scale=noise_scale, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, grads, noise, protecting, uncorrected):
    """Returns the params after all steps, by path, from the equations."""
    utility = {path: np.zeros_like(param) for path, param in params.items()}
    for step in range(1, NUM_STEPS + 1):
        for path, param in params.items():
            grad = grads[path][step - 1]
            utility[path] = DECAY * utility[path] - (1 - DECAY) * grad * param
        correction = 1 - DECAY**step
        largest = max(leaf.max() for leaf in utility.values())
        if not uncorrected:
            largest = largest / correction
        new = {}
        for path, param in params.items():
            grad, xi = grads[path][step - 1], NOISE * noise[path][step - 1]
            scale = 1 - sigmoid(utility[path] / correction / largest)
            move = (grad + xi) * scale if protecting else grad + xi * scale
            new[path] = (1 - RATE * SHRINK) * param - RATE * move
        params = new
    return params


def draw_noise(params):
    """Reads xi off a run in which all utilities are 0, and s is 1/2."""
    grads = jax.tree.map(lambda leaf: jnp.zeros((NUM_STEPS, *leaf.shape)), params)
    tx = make(1.0, weight_decay=0.0)

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, jax.tree.map(lambda leaf: leaf / (-RATE / 2), updates)

    return jax.lax.scan(step, tx.init(params), grads)[1]


@pytest.mark.parametrize(
    ("protecting", "uncorrected"), [(True, False), (False, False), (True, True)]
)
def test_it_is_the_equation(protecting, uncorrected):
    with jax.enable_x64(True):
        params = {"head": tiny.make_params(np.float64)["head"]}
        grads = tiny.make_grads(NUM_STEPS, params)
        noise = tiny.by_path(draw_noise(params))
        tx = make(protecting=protecting, uncorrected_maximum=uncorrected)
        history = tiny.loop(tx, params, grads, FEATURES)
        actual = tiny.by_path(history[-1][0])
    arguments = (tiny.by_path(tree) for tree in (params, grads))
    wanted = reference(*arguments, noise, protecting, uncorrected)
    for path, param in wanted.items():
        np.testing.assert_allclose(actual[path], param, rtol=1e-11, err_msg=path)


def test_the_maximum_has_its_sign_and_belongs_to_all_params():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[4.0]])}
    grads = jax.tree.map(jnp.ones_like, params)  # Utilities -1, -2 and -4.
    tx = upgd(1.0, noise_scale=0.0, key=tiny.FAST_KEY)
    updates, _ = tx.update(grads, tx.init(params), params)
    scale = 1 - sigmoid(np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(updates["a"], -scale[:2], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -scale[2:, None], rtol=1e-6)


def test_without_noise_and_protection_it_is_gradient_descent_bit_for_bit():
    tx, base = make(0.0, protecting=False, weight_decay=0.0), optax.sgd(RATE)
    grads = tiny.at(GRADS, 0)
    updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
    wanted, _ = jax.jit(base.update)(grads, base.init(PARAMS))
    tiny.assert_equal(updates, wanted)


def test_noise_is_normal_new_at_every_update_and_scaled():
    params = {"kernel": jnp.zeros((100, 100))}
    tx = upgd(1.0, noise_scale=0.2, key=tiny.FAST_KEY)
    state, noise = tx.init(params), []
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        noise.append(np.ravel(updates["kernel"]))
    for draw in noise:  # s is 1/2.
        assert abs(draw.mean()) < 0.004
        np.testing.assert_allclose(draw.std(), 0.1, rtol=0.03)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.04


@functools.cache
def solo(noise_scale, seed):
    tx = make(noise_scale, key=jax.random.key(seed))
    return jax.jit(lambda: tiny.run(tx, PARAMS, GRADS, FEATURES)[0])()


def test_lanes_are_solo_runs_and_keys_matter():
    lanes = jax.jit(
        jax.vmap(
            lambda noise_scale, key: tiny.run(
                make(noise_scale, key=key), PARAMS, GRADS, FEATURES
            )[0]
        )
    )(jnp.array([0.1, 0.5]), jax.vmap(jax.random.key)(jnp.arange(2)))
    for index, noise_scale in enumerate([0.1, 0.5]):
        tiny.assert_close(tiny.at(lanes, index), solo(noise_scale, index))
    difference = lanes["head"]["bias"][0] - lanes["head"]["bias"][1]
    assert np.abs(difference).min() > 0


def test_bfloat16_updates_have_float32_utilities():
    params = tiny.make_params(jnp.bfloat16)
    tx = make()
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        updates, next_state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], params, state, params
        )
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(next_state.utility):
        assert leaf.dtype == jnp.float32
    # The field of utilities belongs to the params.
    owners = optax.tree.map_params(
        tx, lambda _: 1, state, transform_non_params=lambda _: 0
    )
    assert jax.tree.leaves(owners) == [0] + [1] * 6 + [0]


def test_schedules_multi_steps_and_injected_hyperparams():
    def schedule(count):
        return 0.1 / (1 + count)

    injected = optax.inject_hyperparams(upgd, static_args=("key", "protecting"))(
        schedule, noise_scale=0.0, protecting=False, key=tiny.FAST_KEY
    )
    tx = optax.MultiSteps(injected, 2)
    own = upgd(schedule, noise_scale=0.0, protecting=False, key=tiny.FAST_KEY)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    means = jax.tree.map(
        lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]).mean(1), GRADS
    )
    tiny.assert_close(history[-1][0], tiny.loop(own, PARAMS, means, FEATURES)[-1][0])
    wanted = jax.tree.map(
        lambda param, mean: param - 0.1 * mean[0] - 0.05 * mean[1], PARAMS, means
    )
    tiny.assert_close(history[-1][0], wanted)


def test_it_needs_params():
    tx = make()
    with pytest.raises(ValueError, match="upgd needs the params"):
        tx.update(PARAMS, tx.init(PARAMS))

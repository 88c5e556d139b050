"""UPGD against the equations, its variants, noise and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbp_jax.optimizers._upgd import upgd

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


def test_noise_is_normal_new_at_every_update_and_scaled():
    params, noise = {"kernel": jnp.zeros((60, 60))}, []
    for key in (tiny.FAST_KEY, jax.random.key(1, impl="unsafe_rbg")):
        tx = upgd(1.0, noise_scale=0.2, key=key)
        update, state = jax.jit(tx.update), tx.init(params)
        for _ in range(2):
            updates, state = update(params, state, params)
            noise.append(np.ravel(updates["kernel"]))
    # s is 1/2.
    np.testing.assert_allclose(np.mean(noise, axis=1), 0, atol=0.006)
    np.testing.assert_allclose(np.std(noise, axis=1), 0.1, rtol=0.04)
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.06


def test_the_learning_rate_can_be_a_schedule():
    tx = upgd(
        lambda count: 0.1 / (1 + count),
        noise_scale=0.0,
        protecting=False,
        key=tiny.FAST_KEY,
    )
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    wanted = PARAMS["head"]["bias"]
    for step, (params, _) in enumerate(history):
        wanted = wanted - 0.1 / (1 + step) * GRADS["head"]["bias"][step]
        np.testing.assert_allclose(params["head"]["bias"], wanted, rtol=1e-5)

"""Adaptive UPGD and perturbed gradient descent against the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbp_jax.optimizers import ada_upgd, pgd

NUM_STEPS = 4
RATE, B1, B2, EPS = 0.1, 0.8, 0.9, 1e-3
DECAY, NOISE, SHRINK = 0.7, 0.5, 0.2
FEATURES = tiny.make_features(NUM_STEPS)


def make(noise_scale=NOISE, **options):
    options = {
        **{"decay_rate": DECAY, "weight_decay": SHRINK, "key": tiny.FAST_KEY},
        **options,
    }
    return ada_upgd(RATE, B1, B2, EPS, noise_scale=noise_scale, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, grads, noise, protecting, uncorrected):
    """Returns the params after all steps, by path, from the equations."""
    zeros = {path: np.zeros_like(param) for path, param in params.items()}
    utility, mu, nu = dict(zeros), dict(zeros), dict(zeros)
    for step in range(1, NUM_STEPS + 1):
        for path, param in params.items():
            grad = grads[path][step - 1]
            utility[path] = DECAY * utility[path] - (1 - DECAY) * grad * param
            mu[path] = B1 * mu[path] + (1 - B1) * grad
            nu[path] = B2 * nu[path] + (1 - B2) * grad**2
        largest = max(leaf.max() for leaf in utility.values())
        if not uncorrected:
            largest = largest / (1 - DECAY**step)
        new = {}
        for path, param in params.items():
            scale = 1 - sigmoid(utility[path] / (1 - DECAY**step) / largest)
            direction = mu[path] / (1 - B1**step)
            direction = direction / (np.sqrt(nu[path] / (1 - B2**step)) + EPS)
            if protecting:
                direction = direction * scale
            direction = direction + NOISE * noise[path][step - 1] * scale
            new[path] = (1 - RATE * SHRINK) * param - 2 * RATE * direction
        params = new
    return params


def draw_noise(params):
    """Reads xi off a run in which all utilities are 0, so that 1 - s is 1/2."""
    grads = jax.tree.map(lambda leaf: jnp.zeros((NUM_STEPS, *leaf.shape)), params)
    tx = make(1.0, weight_decay=0.0)

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, jax.tree.map(lambda leaf: leaf / -RATE, updates)

    return jax.lax.scan(step, tx.init(params), grads)[1]


@pytest.mark.parametrize(
    ("protecting", "uncorrected"),
    [
        (True, False),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
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
        np.testing.assert_allclose(actual[path], param, rtol=1e-10, err_msg=path)


def test_a_weight_of_no_use_takes_the_step_of_adam():
    params = {"kernel": jnp.zeros((2, 3))}
    tx = make(0.0, weight_decay=0.0)
    updates, _ = tx.update(ones_like(params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -RATE / (1 + EPS), rtol=1e-6)


def ones_like(params):
    return jax.tree.map(jnp.ones_like, params)


def test_perturbed_gradient_descent_scales_new_noise_by_the_learning_rate():
    params = {"kernel": jnp.zeros((60, 60))}
    tx, noise = pgd(0.1, noise_scale=2.0, key=tiny.FAST_KEY), []
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):
        updates, state = update(ones_like(params), state)
        noise.append(np.ravel(updates["kernel"]))
    np.testing.assert_allclose(np.mean(noise, axis=1), -0.1, atol=0.015)
    np.testing.assert_allclose(np.std(noise, axis=1), 0.2, rtol=0.04)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.06

"""Parseval, AdamO, Wasserstein init, L1 init: their equations, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax import optimizers

NUM_STEPS = 3
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)


def parseval(path, param, initial):
    del initial
    if not path.endswith("kernel") or path.startswith("head"):
        return 0
    w = param.T
    width = len(w)
    return (64 / width) ** 2 * 4 * ((w @ w.T - 2 * np.eye(width)) @ w).T


def isometry(path, param, initial):
    del initial
    if not path.endswith("kernel"):
        return 0
    u, s, v = np.linalg.svd(param, full_matrices=False)
    return u * (4 * s * (s**2 - 1)) @ v


def l1(path, param, initial):
    del path
    return np.sign(param - initial)


def wasserstein(path, param, initial):
    del path
    ranks = np.argsort(np.argsort(param.ravel()))
    targets = np.sort(initial.ravel())[ranks].reshape(param.shape)
    return 2 / param.size * (param - targets)


PENALTIES = {
    "parseval": (optimizers.parseval(1e-5, exclude=("head",)), parseval, 1e-5),
    "isometry": (optimizers.isometry(1e-3), isometry, 1e-3),
    "l1_init": (optimizers.l1_init(0.3), l1, 0.3),
    "wasserstein_init": (optimizers.wasserstein_init(3.0), wasserstein, 3.0),
}


def run(tx, params=PARAMS, grads=GRADS):
    with jax.enable_x64(True):
        params, grads = (
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
            for tree in (params, grads)
        )
        return tiny.by_path(tiny.loop(tx, params, grads, {"none": np.ones(3)})[-1][0])


@pytest.mark.parametrize("name", PENALTIES)
def test_it_is_the_equation(name):
    penalty, gradient, strength = PENALTIES[name]
    actual = run(optax.chain(penalty, optax.sgd(0.1)))
    for path, initial in tiny.by_path(PARAMS).items():
        param = initial = np.asarray(initial, np.float64)
        for grad in np.asarray(tiny.by_path(GRADS)[path], np.float64):
            step = grad + strength * gradient(path, param, initial)
            param = param - 0.1 * step
        np.testing.assert_allclose(actual[path], param, rtol=1e-10, err_msg=path)


def test_wasserstein_init_keeps_its_ranks_between_the_updates_of_a_schedule():
    penalty = optimizers.wasserstein_init(3.0, optimizers.at(2))
    actual = run(optax.chain(penalty, optax.sgd(0.1)))
    for path, initial in tiny.by_path(PARAMS).items():
        param = targets = initial = np.asarray(initial, np.float64)
        grads = np.asarray(tiny.by_path(GRADS)[path], np.float64)
        for count, grad in enumerate(grads, start=1):
            if count == 2:
                ranks = np.argsort(np.argsort(param.ravel()))
                targets = np.sort(initial.ravel())[ranks].reshape(param.shape)
            param = param - 0.1 * (grad + 3.0 * 2 / param.size * (param - targets))
        np.testing.assert_allclose(actual[path], param, rtol=1e-10, err_msg=path)


def test_adamo_is_the_equation():
    """The moments see the gradient of the task only; the step size scales both."""
    actual = run(optimizers.adamo(0.01, 0.8, 0.9, 1e-3, strength=0.05))
    for path, initial in tiny.by_path(PARAMS).items():
        param = np.asarray(initial, np.float64)
        mu, nu = np.zeros(param.shape), np.zeros(param.shape)
        for count, grad in enumerate(tiny.by_path(GRADS)[path], start=1):
            grad = np.asarray(grad, np.float64)
            mu, nu = 0.8 * mu + 0.2 * grad, 0.9 * nu + 0.1 * grad**2
            adam = mu / (1 - 0.8**count) / (np.sqrt(nu / (1 - 0.9**count)) + 1e-3)
            pull = isometry(path, param, initial)
            param = param - 0.01 * (adam + 0.05 * pull)
        np.testing.assert_allclose(actual[path], param, rtol=1e-9, err_msg=path)


def test_adamo_of_strength_0_is_adam_bit_for_bit_and_takes_schedules():
    schedule = optax.linear_schedule(0.1, 0.01, 3)
    features = tiny.make_features(NUM_STEPS)
    plain, off = (
        tiny.loop(tx, PARAMS, GRADS, features)[-1][0]
        for tx in (optax.adam(schedule), optimizers.adamo(schedule, strength=0.0))
    )
    tiny.assert_equal(off, plain)


def test_strength_zero_lets_a_diverged_param_be():
    params = {"kernel": jnp.array([[np.inf, 1.0]])}
    grads = {"kernel": jnp.array([[0.5, -0.0]])}
    for tx in (optimizers.isometry(0.0), optimizers.l1_init(0.0)):
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_array_equal(updates["kernel"], grads["kernel"])
        assert np.signbit(updates["kernel"][0, 1])


def test_wrong_arguments_are_found_before_the_first_update():
    with pytest.raises(ValueError, match="'tail', which is not in the params"):
        optimizers.parseval(1e-3, exclude=("tail",)).init(PARAMS)
    with pytest.raises(ValueError, match=r"layout must be one of"):
        optimizers.isometry(1e-3, layout="xy").init(PARAMS)

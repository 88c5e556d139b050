"""Spectral regularization against NumPy, and against singular value decompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers import spectral_regularization

NUM_STEPS = 3
STRENGTH, RATE = 0.3, 0.1


def make_params(dtype=np.float64):
    """A convolution, a normalization with a gain and a bias, and a head."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (2, 2, 3, 5)},
        "norm": {"scale": (5,), "bias": (5,)},
        "head": {"kernel": (5, 2), "bias": (2,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradient(path, param, v, k):
    """The gradient of the penalty of one leaf, and the next v."""
    if path.endswith("scale"):
        return 2 * (param - 1), v
    if path.endswith("bias"):
        return 2 * k * (param @ param) ** (k - 1) * param, v
    matrix = param.reshape(-1, param.shape[-1])
    u = matrix @ v / np.sqrt((matrix @ v) @ (matrix @ v))
    v = matrix.T @ u / np.sqrt((matrix.T @ u) @ (matrix.T @ u))
    sigma = u @ matrix @ v
    slope = 2 * (sigma**k - 1) * k * sigma ** (k - 1)
    return slope * np.outer(u, v).reshape(param.shape), v


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_is_the_equation(k):
    with jax.enable_x64(True):
        params = make_params()
        grads = tiny.make_grads(NUM_STEPS, params)
        penalty = spectral_regularization(STRENGTH, exponent=k, key=tiny.FAST_KEY)
        tx = optax.chain(penalty, optax.sgd(RATE))
        vectors = tiny.by_path(tx.init(params)[0].vectors)
        for path, vector in vectors.items():
            length = 1.0 if path.endswith("kernel") else 0.0
            np.testing.assert_allclose(np.linalg.norm(vector), length, rtol=1e-12)
        history = tiny.loop(tx, params, grads, tiny.make_features(NUM_STEPS))
    wanted = tiny.by_path(params)
    for step, (actual, state) in enumerate(history):
        for path, grad in tiny.by_path(grads).items():
            pull, vectors[path] = gradient(path, wanted[path], vectors[path], k)
            wanted[path] = wanted[path] - RATE * (grad[step] + STRENGTH * pull)
            np.testing.assert_allclose(
                tiny.by_path(actual)[path], wanted[path], rtol=1e-9, err_msg=path
            )
            np.testing.assert_allclose(
                tiny.by_path(state[0].vectors)[path], vectors[path], rtol=1e-9
            )


@jax.jit
def train(params, rate):
    """200 steps down the penalty alone: params and the last pull."""
    tx = spectral_regularization(1.0, key=tiny.FAST_KEY)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        params, state, _ = carry
        pull, state = tx.update(zeros, state, params)
        params = jax.tree.map(lambda leaf, pull: leaf - rate * pull, params, pull)
        return (params, state, pull), None

    start = (params, tx.init(params), zeros)
    params, _, pull = jax.lax.scan(step, start, None, length=200)[0]
    return params, pull


def test_the_vectors_become_those_of_the_largest_singular_value():
    params = make_params(np.float32)
    _, pulls = train(params, 0.0)
    for path, pull in tiny.by_path(pulls).items():
        if not path.endswith("kernel"):
            continue
        matrix = tiny.by_path(params)[path].reshape(-1, pull.shape[-1])
        left, sigmas, right = np.linalg.svd(matrix)
        slope = 4 * sigmas[0] * (sigmas[0] ** 2 - 1)
        wanted = slope * np.outer(left[:, 0], right[0])
        np.testing.assert_allclose(
            pull.reshape(matrix.shape), wanted, atol=1e-3 * abs(slope), err_msg=path
        )


def test_alone_it_leads_to_norms_of_1_gains_of_1_and_no_biases():
    params, _ = train(make_params(np.float32), 0.02)
    for path, leaf in tiny.by_path(params).items():
        if path.endswith("kernel"):
            norm = np.linalg.norm(leaf.reshape(-1, leaf.shape[-1]), ord=2)
            np.testing.assert_allclose(norm, 1, atol=1e-2, err_msg=path)
        elif path.endswith("scale"):
            np.testing.assert_allclose(leaf, 1, atol=1e-2)
        else:
            assert np.linalg.norm(leaf) < 0.5  # The slope falls with the cube.


def test_zeros_stay_and_diverged_params_do_no_harm_at_strength_0():
    zeros = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    infinite = {"kernel": jnp.full((3, 2), np.inf), "bias": jnp.full(2, np.nan)}
    ones = jax.tree.map(jnp.ones_like, zeros)
    for params, strength, exponent in ((zeros, 1.0, 1.0), (infinite, 0.0, 2.0)):
        tx = spectral_regularization(strength, exponent=exponent, key=tiny.FAST_KEY)
        updates, state = tx.update(ones, tx.init(params), params)
        tiny.assert_equal(updates, ones)
        if params is zeros:
            np.testing.assert_allclose(np.linalg.norm(state.vectors["kernel"]), 1)


def test_gains_may_have_another_name():
    params = {"w": jnp.full(2, 3.0), "scale": jnp.full(2, 3.0)}
    tx = spectral_regularization(1.0, gain_name="w", key=tiny.FAST_KEY)
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    np.testing.assert_allclose(updates["w"], 4.0)
    np.testing.assert_allclose(updates["scale"], 4 * 18 * 3.0)


def test_errors():
    with pytest.raises(ValueError, match=r"exponent must be in \[1, inf\], got 0.5"):
        spectral_regularization(1.0, exponent=0.5, key=tiny.FAST_KEY)

"""FIRE against a NumPy loop and the polar factor, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers._events import at, every
from cbp_jax.optimizers._fire import fire, orthogonalize

PARAMS = tiny.make_params()
GRADS = tiny.make_grads(3, PARAMS)


def iterate(matrix, number):
    """The published iteration, on a matrix [fan_in, fan_out]."""
    x = matrix / np.sqrt((matrix**2).sum())
    for _ in range(number):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


def polar_factor(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (2, 3, 5, 4), (3, 2, 5)])
def test_it_is_the_iteration_with_its_scale(shape, number):
    *window, fan_in, fan_out = shape
    kernel = draw(*shape)
    wanted = np.empty_like(kernel)
    for position in np.ndindex(*window):
        wanted[position] = iterate(kernel[position], number)
    wanted *= np.sqrt(fan_out / fan_in) / np.prod(window)
    with jax.enable_x64(True):
        actual = orthogonalize(jnp.asarray(kernel), number)
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_well_conditioned_kernels_become_their_scaled_polar_factors(shape):
    kernel = draw(*shape)
    actual = orthogonalize(jnp.asarray(kernel, np.float32), 10)
    scale = np.sqrt(shape[1] / shape[0])
    np.testing.assert_allclose(actual, scale * polar_factor(kernel), atol=1e-5)


def test_more_iterations_reach_smaller_singular_values():
    with jax.enable_x64(True):
        kernel = jnp.diag(jnp.array([1.0, 1e-3]))
        few, many = (np.diag(orthogonalize(kernel, number)) for number in (10, 40))
    np.testing.assert_allclose(few[1], 1e-3 * 1.5**10, rtol=2e-3)
    np.testing.assert_allclose(many, 1, rtol=1e-10)


def test_a_position_of_zeros_stays():
    kernel = jnp.asarray(draw(2, 4, 3)).at[0].set(0)
    actual = orthogonalize(kernel, 5)
    np.testing.assert_array_equal(actual[0], 0)
    assert np.isfinite(actual).all() and np.abs(actual[1]).max() > 0.1


def test_hidden_kernels_change_at_events_and_all_else_passes_bit_for_bit():
    tx = fire(at(2), exclude=("head",))
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for step in (1, 2, 3):
        grads = tiny.at(GRADS, step - 1)
        updates, state = update(grads, state, PARAMS)
        new = tiny.by_path(optax.apply_updates(PARAMS, updates))
        before = tiny.by_path(grads)
        for path, leaf in tiny.by_path(updates).items():
            if step != 2 or path not in ("dense_0/kernel", "dense_1/kernel"):
                np.testing.assert_array_equal(leaf, before[path], err_msg=path)
                continue
            moved = tiny.by_path(PARAMS)[path] + before[path]
            fan_in, fan_out = moved.shape
            wanted = np.sqrt(fan_out / fan_in) * iterate(moved.astype(float), 10)
            np.testing.assert_allclose(new[path], wanted, atol=1e-5, err_msg=path)


def test_bfloat16_is_iterated_in_float32():
    kernel = tiny.make_params(jnp.bfloat16)["dense_1"]["kernel"]
    actual = orthogonalize(kernel, 10)
    wanted = np.sqrt(5 / 6) * iterate(np.asarray(kernel, np.float64), 10)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"num_iterations must be in .*, got 0"):
        fire(every(1), num_iterations=0)
    with pytest.raises(ValueError, match="exclude names 'heads'"):
        fire(every(1), exclude=("heads",)).init(PARAMS)

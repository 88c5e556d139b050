"""FIRE against a NumPy loop, the polar factor and its composition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers.events import at, every
from cbp_jax.optimizers.fire import fire, orthogonalize

PARAMS = tiny.make_params()
GRADS = tiny.make_grads(3, PARAMS)
FEATURES = tiny.make_features(3)


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


def run(period, num_iterations):
    tx = optax.chain(optax.sgd(0.1), fire(every(period), num_iterations=num_iterations))
    return tiny.run(tx, PARAMS, GRADS, FEATURES)[0]


def test_lanes_with_their_own_schedules_and_iterations_are_solo_runs():
    periods, numbers = jnp.array([1, 2, 2]), jnp.array([3, 3, 8])
    lanes, solo = jax.jit(jax.vmap(run))(periods, numbers), jax.jit(run)
    for index in range(3):
        tiny.assert_close(tiny.at(lanes, index), solo(periods[index], numbers[index]))
    kernel = lanes["dense_0"]["kernel"]
    assert np.abs(kernel[1, 1] - kernel[2, 1]).max() > 1e-3


def test_bfloat16_is_iterated_in_float32():
    params = tiny.make_params(jnp.bfloat16)
    tx = fire(every(1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("strict"):
        updates, state = jax.lax.cond(
            True, tx.update, lambda *args: args[:2], zeros, tx.init(params), params
        )
    assert int(state.count) == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.bfloat16.dtype}
    kernel = np.asarray(params["dense_1"]["kernel"], np.float32)
    new = kernel + np.asarray(updates["dense_1"]["kernel"], np.float32)
    wanted = np.sqrt(5 / 6) * iterate(kernel, 10)
    np.testing.assert_allclose(new, wanted, atol=2**-8)


def test_multi_steps_injection_and_continual_backprop():
    link = optax.inject_hyperparams(fire, static_args=("schedule", "exclude"))(
        at(1), num_iterations=6
    )
    base = optax.chain(optax.sgd(0.0), link)
    wanted = np.sqrt(6 / 4) * iterate(np.asarray(PARAMS["dense_0"]["kernel"]), 6)
    several = optax.MultiSteps(base, 2)
    units = cbp_jax.continual_backprop(
        base, tiny.UNITS, replacement_rate=0.0, key=tiny.FAST_KEY
    )
    for tx, first in ((several, 1), (units, 0)):
        history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
        kernels = [params["dense_0"]["kernel"] for params, _ in history]
        np.testing.assert_allclose(kernels[first], wanted, atol=1e-5)
        np.testing.assert_allclose(kernels[2], wanted, atol=1e-5)
        if first:
            tiny.assert_equal(history[0][0], PARAMS)


def test_errors():
    with pytest.raises(ValueError, match=r"num_iterations must be in .*, got 0"):
        fire(every(1), num_iterations=0)
    with pytest.raises(ValueError, match="exclude names 'heads'"):
        fire(every(1), exclude=("heads",)).init(PARAMS)
    with pytest.raises(ValueError, match="Events need the params"):
        fire(every(1)).update(PARAMS, fire(every(1)).init(PARAMS))

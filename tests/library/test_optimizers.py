"""Adam with a count per unit: Adam without ages, exact per-weight counts with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import _continual_backprop, optimizers

B1, B2 = 0.9, 0.999
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(5, PARAMS)
AGES = {"dense_0": np.array([0, 1, 7, 40, 7, 2]), "dense_1": np.array([3, 0, 40, 9, 1])}
COUNT = 40


def run_alone(tx):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for index in range(5):
        params, state = step(params, state, tiny.at(GRADS, index))
    return params


@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.9)])
def test_without_ages_it_is_adam(betas):
    schedule = optax.linear_schedule(0.1, 0.01, 5)
    own = optimizers.adam_with_unit_counts(schedule, tiny.UNITS, *betas, 1e-3)
    actual, wanted = run_alone(own), run_alone(optax.adam(schedule, *betas, 1e-3))
    moved = actual["head"]["bias"] - PARAMS["head"]["bias"]
    assert np.abs(moved).min() > 0.01
    tiny.assert_close(actual, wanted)


@pytest.mark.parametrize(
    "mask", [None, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)]
)
def test_without_ages_and_with_weight_decay_it_is_adamw(mask):
    numbers = 0.1, 0.8, 0.95, 1e-3
    rate, *rest = numbers
    own = optimizers.adamw_with_unit_counts(
        rate, tiny.UNITS, *rest, weight_decay=0.3, mask=mask
    )
    wanted = run_alone(optax.adamw(*numbers, weight_decay=0.3, mask=mask))
    tiny.assert_close(run_alone(own), wanted)


def longest_step(b1, b2):
    """Of gradients that grow a thousandfold, over the learning rate."""
    tx = optimizers.scale_by_adam_with_unit_counts(tiny.UNITS, b1, b2, 0.0)

    def step(state, grad):
        grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, grad), PARAMS)
        updates, state = tx.update(grads, state)
        return state, updates["head"]["bias"][0]

    grads = jnp.repeat(jnp.array([1e-3, 1.0]), jnp.array([100, 20]))
    return jax.jit(lambda: jax.lax.scan(step, tx.init(PARAMS), grads))()[1].max()


def test_with_equal_betas_no_step_is_longer_than_the_learning_rate():
    np.testing.assert_allclose(longest_step(0.9, 0.9), 1, rtol=1e-4)
    # The old gradients are next to nothing in both averages.
    new = np.arange(1, 21)
    averages, of_squares = 1 - 0.9**new, (1 - 0.999**new) / (1 - 0.999 ** (100 + new))
    wanted = (averages / np.sqrt(of_squares)).max()
    np.testing.assert_allclose(longest_step(0.9, 0.999), wanted, rtol=1e-3)
    assert wanted > 2


def weight_ages():
    """Returns the age of each param, by path: that of the younger of its two ends."""
    first, second = AGES["dense_0"], AGES["dense_1"]
    return {
        "dense_0/kernel": np.broadcast_to(first, (4, 6)),
        "dense_0/bias": first,
        "dense_1/kernel": np.minimum(first[:, None], second),
        "dense_1/bias": second,
        "head/kernel": np.broadcast_to(second[:, None], (5, 3)),
        "head/bias": np.full(3, COUNT),
    }


@pytest.mark.parametrize("before", [False, True])
def test_a_weight_is_as_old_as_the_younger_of_its_units(before):
    eps = 0.1
    tx = optimizers.scale_by_adam_with_unit_counts(
        tiny.UNITS, B1, B2, eps, eps_before_correction=before
    )
    state = tx.init(PARAMS)
    moments = tiny.at(GRADS, 1), jax.tree.map(jnp.square, tiny.at(GRADS, 2))
    state = state._replace(count=jnp.int32(COUNT), mu=moments[0], nu=moments[1])
    grads = tiny.at(GRADS, 0)
    ages = {name: jnp.asarray(age, jnp.int32) for name, age in AGES.items()}
    update = jax.jit(functools.partial(tx.update, unit_ages=ages))
    with jax.numpy_dtype_promotion("strict"):
        updates, new_state = update(grads, state)
    assert int(new_state.count) == COUNT + 1
    updates, grads, mu, nu = (tiny.by_path(tree) for tree in (updates, grads, *moments))
    for path, age in weight_ages().items():
        steps = age + 1.0
        first = B1 * mu[path] + (1 - B1) * grads[path]
        second = B2 * nu[path] + (1 - B2) * grads[path] ** 2
        if before:
            size = np.sqrt(1 - B2**steps) / (1 - B1**steps)
            wanted = size * first / (np.sqrt(second) + eps)
        else:
            corrected = np.sqrt(second / (1 - B2**steps))
            wanted = first / (1 - B1**steps) / (corrected + eps)
        np.testing.assert_allclose(updates[path], wanted, rtol=2e-5, err_msg=path)


def test_bfloat16_moments_are_corrected_in_float32():
    params = tiny.make_params(jnp.bfloat16)
    tx = optimizers.scale_by_adam_with_unit_counts(tiny.UNITS)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        updates, new_state = jax.jit(tx.update)(params, state)
    for leaf in jax.tree.leaves((updates, new_state.mu, new_state.nu)):
        assert leaf.dtype == jnp.bfloat16
    # The first step is the sign of the gradient; in bfloat16 1 - 0.999 would be 0.
    sign = np.sign(np.asarray(params["head"]["kernel"], np.float32))
    first = np.asarray(updates["head"]["kernel"], np.float32)
    np.testing.assert_allclose(first, sign, rtol=2**-7)


@pytest.mark.parametrize("layout", ["io", "oi"])
def test_ages_of_channels_reach_all_positions_of_a_flattened_map(layout):
    units = (
        cbp_jax.UnitGroup("conv", "conv", outgoing="dense", layout=layout),
        cbp_jax.UnitGroup("dense", "dense", outgoing="head", layout=layout),
    )
    conv, dense, head = (3, 3, 1, 2), (8, 3), (3, 1)
    if layout == "oi":
        conv, dense, head = (2, 1, 3, 3), (3, 8), (1, 3)
    params = {"conv": jnp.ones(conv), "dense": jnp.ones(dense), "head": jnp.ones(head)}
    tx = optimizers.scale_by_adam_with_unit_counts(units, 0.5, 0.0, 0.0)
    ages = {"conv": jnp.array([0, 5]), "dense": jnp.array([5, 1, 0])}
    state = tx.init(params)._replace(count=jnp.int32(9))
    updates, _ = jax.jit(functools.partial(tx.update, unit_ages=ages))(params, state)
    channels = np.tile([0, 5], 4) if layout == "io" else np.repeat([0, 5], 4)
    steps = 1 + np.minimum(channels[:, None], [5, 1, 0])
    wanted = 0.5 / (1 - 0.5**steps)
    dense_updates = updates["dense"] if layout == "io" else updates["dense"].T
    np.testing.assert_allclose(dense_updates, wanted, rtol=1e-6)


def test_ages_of_stacked_layers_and_of_heads():
    units = (
        cbp_jax.UnitGroup("mlp", "up", outgoing="down", stack_axes=1),
        cbp_jax.UnitGroup("value", "value", outgoing="out", unit_axes=2),
    )
    shapes = {"up": (2, 3, 4), "down": (2, 4, 3), "value": (3, 2, 2), "out": (2, 2, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    tx = optimizers.scale_by_adam_with_unit_counts(units, 0.5, 0.0, 0.0)
    ages = {
        "mlp": jnp.array([[0, 5, 1, 9], [3, 0, 2, 1]]),
        "value": jnp.array([0, 4, 2, 9]),
    }
    state = tx.init(params)._replace(count=jnp.int32(9))
    updates, _ = jax.jit(functools.partial(tx.update, unit_ages=ages))(params, state)
    size = {name: 0.5 / (1 - 0.5 ** (1.0 + age)) for name, age in ages.items()}
    heads = size["value"].reshape(2, 2)
    wanted = {
        "up": size["mlp"][:, None],
        "down": size["mlp"][:, :, None],
        "value": heads,
        "out": heads[..., None],
    }
    for name, update in updates.items():
        whole = np.broadcast_to(wanted[name], shapes[name])
        np.testing.assert_allclose(update, whole, rtol=1e-6, err_msg=name)


def first_step_of_a_reborn_unit(base):
    """Returns the size of its first step over the learning rate, by param."""
    tx = cbp_jax.continual_backprop(
        base,
        tiny.UNITS[:1],
        replacement_rate=0.05,
        maturity_threshold=500,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )

    @jax.jit
    def step(params, state, grads):
        features = tiny.at(tiny.make_features(), 0)
        return tx.update(grads, state, params, features=features)

    state = tx.init(PARAMS)
    owed = int(0.9 * (1 << _continual_backprop.BUDGET_BITS))
    state = tiny.with_units(state, "dense_0", age=[2000] * 6, budget=owed)
    # The optimizer has taken 2000 steps as well; its scalars are its count.
    base_state = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, 2000) if leaf.ndim == 0 else leaf,
        state.base_state,
    )
    grads = tiny.at(GRADS, 0)
    updates, state = step(PARAMS, state._replace(base_state=base_state), grads)
    unit = np.asarray(state.replaced["dense_0"])[0]
    assert unit < 6
    params = optax.apply_updates(PARAMS, updates)
    updates, state = step(params, state, tiny.at(GRADS, 1))
    assert int(state.replaced["dense_0"][0]) == 6
    steps = {
        "incoming": updates["dense_0"]["kernel"][:, unit],
        "bias": updates["dense_0"]["bias"][unit],
        "outgoing": updates["dense_1"]["kernel"][unit],
    }
    return {name: np.abs(update) / 0.01 for name, update in steps.items()}


@pytest.mark.parametrize("b2", [0.999, 0.9])
def test_the_first_step_of_a_reborn_unit_is_not_too_long_or_short(b2):
    own = first_step_of_a_reborn_unit(
        optimizers.adam_with_unit_counts(0.01, tiny.UNITS[:1], 0.9, b2)
    )
    plain = first_step_of_a_reborn_unit(optax.adam(0.01, 0.9, b2))
    # With its own count Adam's first step is the learning rate; with a count of 2000,
    # 0.1 / sqrt(0.001 / (1 - 0.999**2001)) = 2.94 times that, or sqrt(0.1) of it where
    # betas are equal.
    expected = 0.1 / np.sqrt((1 - b2) / (1 - b2**2002))
    for name in own:
        np.testing.assert_allclose(own[name], 1, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(plain[name], expected, rtol=1e-4, err_msg=name)


def test_the_first_step_of_a_reborn_unit_is_a_step_of_adam_and_the_decay():
    own = first_step_of_a_reborn_unit(
        optimizers.adamw_with_unit_counts(0.01, tiny.UNITS[:1], weight_decay=0.5)
    )
    # The initializer's weights are i / 10; Adam's first step is the learning rate.
    decay = 0.5 * np.arange(1, 5) / 10
    np.testing.assert_allclose(np.abs(own["incoming"] - 1), decay, rtol=1e-3)
    for name in ("bias", "outgoing"):  # 0 does not decay.
        np.testing.assert_allclose(own[name], 1, rtol=1e-4, err_msg=name)

"""What holds for every transformation of `cbp_jax.optimizers`."""

import functools

from full_optimization import full_jit
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import (
    CASES,
    GRADS,
    NUM_STEPS,
    PARAMS,
    UNITS,
    make,
    make_params,
    options_of,
)
import pytest
import tiny

import cbp_jax
from cbp_jax._trees import reset_moments
from cbp_jax._units import UnitMask, resolve_units

NAMES = pytest.mark.parametrize("name", CASES)


def as_arrays(numbers):
    return {name: jnp.asarray(number, type(number)) for name, number in numbers.items()}


def take_step(tx, params, state, grads):
    """One update, with extra arguments that nobody asked for."""
    updates, state = tx.update(grads, state, params, value=jnp.float32(3), grad=grads)
    return optax.apply_updates(params, updates), updates, state


def step_of(name, off=False):
    """A step for any numbers and keys; off, with the options that switch it off."""
    case = CASES[name]
    names = case.off.keys() - case.numbers.keys() if off else ()
    fixed = {option: case.off[option] for option in names}

    def step(params, state, grads, numbers, key):
        return take_step(make(name, numbers | fixed, key), params, state, grads)

    return step


@functools.cache
def jitted_step(name, off=False, jit=jax.jit):
    return jit(step_of(name, off), donate_argnums=1)


def run(name, numbers=None, key=tiny.KEY, params=PARAMS, off=False, jit=jax.jit):
    """Params, updates and state after each step; the state is donated to the next."""
    numbers = as_arrays(CASES[name].numbers) if numbers is None else numbers
    step, history = jitted_step(name, off, jit), []
    state = make(name, numbers, key).init(params)
    for index in range(NUM_STEPS):
        grads = tiny.at(GRADS, index)
        params, updates, state = step(params, state, grads, numbers, key)
        history.append((params, updates, jax.tree.map(jnp.copy, state)))
    assert step._cache_size() == 1
    return history


@functools.cache
def plain_run(name):
    return run(name)


@functools.cache
def run_base(base, jit=jax.jit):
    """Updates at each step of one of the base optimizers."""
    step, params, state, history = jit(base.update), PARAMS, base.init(PARAMS), []
    for index in range(NUM_STEPS):
        updates, state = step(tiny.at(GRADS, index), state, params)
        params = optax.apply_updates(params, updates)
        history.append(updates)
    return history


@NAMES
def test_the_state_can_be_stored_by_any_library(name):
    """No typed keys: plain arrays."""
    for leaf in jax.tree.leaves(make(name).init(PARAMS)):
        assert np.asarray(leaf).dtype.kind in "biuf"


FUSED = ("l2_init", "shrink_and_perturb", "fire")


@pytest.mark.parametrize(
    ("name", "jit"),
    [*((name, jax.jit) for name in CASES), *((name, full_jit) for name in FUSED)],
)
def test_off_is_the_base_optimizer_bit_for_bit(name, jit):
    """For one of each place also with all of XLA's optimizations."""
    case = CASES[name]
    off = case.numbers | case.off
    numbers = as_arrays({option: off[option] for option in case.numbers})
    wanted = run_base(case.base, jit)
    # Numbers alone need no program of their own.
    history = run(name, numbers, off=off.keys() != case.numbers.keys(), jit=jit)
    for step, (_, updates, _) in enumerate(history):
        tiny.assert_equal(updates, wanted[step])
    with pytest.raises(AssertionError):
        tiny.assert_equal([updates for _, updates, _ in plain_run(name)], wanted)


@NAMES
def test_lanes_are_solo_runs(name):
    """Lanes differ in their hyperparameters, keys and params."""
    factors, keys = np.array([1.0, 0.5]), jax.random.split(tiny.KEY)
    numbers = {
        option: jnp.asarray(number * factors, type(number))
        for option, number in CASES[name].numbers.items()
    }
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    lanes = range(2)
    solo = [
        run(name, tiny.at(numbers, lane), keys[lane], tiny.at(params, lane))
        for lane in lanes
    ]
    state = jax.vmap(lambda *lane: make(name, *lane[1:]).init(lane[0]))(
        params, numbers, keys
    )
    step = jax.jit(jax.vmap(step_of(name), in_axes=(0, 0, None, 0, 0)))
    for index in range(NUM_STEPS):
        params, _, state = step(params, state, tiny.at(GRADS, index), numbers, keys)
        for lane in lanes:
            actual = tiny.at((params, state), lane)
            wanted = solo[lane][index][0], solo[lane][index][2]
            tiny.assert_close(actual, wanted)


@NAMES
def test_donated_states_share_nothing_with_params_and_keys(name):
    plain_run(name)
    for leaf in (*jax.tree.leaves(PARAMS), tiny.KEY):
        assert not leaf.is_deleted()


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@NAMES
def test_dtypes_and_structure_are_kept_in_scan_and_cond(name, dtype):
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
        params = make_params(dtype)
        grads = tiny.make_grads(NUM_STEPS, params)
        numbers = as_arrays(CASES[name].numbers)

        def train(numbers):
            tx = make(name, numbers)

            def body(carry, grads):
                params, _, state = jax.lax.cond(
                    grads["dense_0"]["bias"][0] > 0,
                    lambda carry: take_step(tx, *carry, grads),
                    lambda carry: (carry[0], grads, carry[1]),
                    carry,
                )
                return (params, state), None

            return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

        new_params, state = jax.eval_shape(train, numbers)
        assert types(new_params) == types(params)
    statistics = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert (jnp.float64 in statistics) <= (dtype == "float64")


def wrapped(name):
    """Its numbers injected, and two gradients averaged for each of its updates."""
    case = CASES[name]
    options = options_of(case, case.numbers, tiny.KEY)
    static = tuple(options.keys() - case.numbers.keys())
    injected = optax.inject_hyperparams(case.function, static_args=static)
    return optax.MultiSteps(case.place(injected, **options), 2)


@NAMES
def test_structure_is_kept_under_injection_and_multi_steps(name):
    tx = wrapped(name)
    state = tx.init(PARAMS)
    step = functools.partial(take_step, tx, PARAMS)
    _, updates, new_state = jax.eval_shape(step, state, tiny.at(GRADS, 0))
    assert types(updates) == types(PARAMS)
    assert types(new_state) == types(state)


@pytest.mark.parametrize(
    "name", ["l2_init", "clip_weights", "hare_and_tortoise", "reset_optimizer_at"]
)
def test_injection_and_multi_steps_act_once_for_two_gradients(name):
    tx = wrapped(name)
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(functools.partial(take_step, tx))
    for index in range(NUM_STEPS):
        before, grads = params, tiny.at(GRADS, index)
        params, _, state = step(params, state, grads)
        tiny.assert_equal(params, before)
        params, _, state = step(params, state, grads)
        tiny.assert_close(params, plain_run(name)[index][0])


@NAMES
def test_state_of_reborn_units_is_newborn(name):
    params, _, state = plain_run(name)[-1]
    tx, (group,) = make(name), resolve_units(UNITS, PARAMS)
    reborn = np.array([True, False, False, True, False, False])
    masks = [(group, UnitMask(jnp.asarray(reborn)))]
    actual = tiny.by_path(reset_moments(tx, state, params, masks))
    old, fresh = (tiny.by_path(tree) for tree in (state, tx.init(params)))
    entries = {
        "dense_0/kernel": np.broadcast_to(reborn, (4, 6)),
        "dense_0/bias": reborn,
        "head/kernel": np.broadcast_to(reborn[:, None], (6, 5)),
    }
    for path, leaf in actual.items():
        mask = np.zeros(leaf.shape, bool)
        for owner, entry in entries.items():
            if path.endswith(f"/{owner}") and leaf.shape == entry.shape:
                mask = entry
        np.testing.assert_array_equal(
            leaf, np.where(mask, fresh[path], old[path]), path
        )


@NAMES
def test_it_can_be_the_base_of_continual_backprop(name):
    """Structure and types; that optax knows which arrays of the state are params."""
    tx = cbp_jax.continual_backprop(make(name), UNITS, key=tiny.KEY)
    features = {"dense_0": jnp.ones((2, 6))}
    state = tx.init(PARAMS)
    updates, new_state = jax.eval_shape(
        lambda state: tx.update(PARAMS, state, PARAMS, features=features), state
    )
    assert types(updates) == types(PARAMS)
    assert types(new_state) == types(state)


NEED_NO_PARAMS = {"pgd", "reset_adam_count_at"}


@pytest.mark.parametrize("name", sorted(CASES.keys() - NEED_NO_PARAMS))
def test_the_error_without_params_says_what_to_write(name):
    tx = make(name)
    with pytest.raises(ValueError, match=r"update got none. Call update\(updates, st"):
        tx.update(PARAMS, tx.init(PARAMS))

"""Params drawn afresh and optimizers started afresh, at events."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.optimizers import (
    adam_with_unit_counts,
    at,
    every,
    hare_and_tortoise,
    reset_adam_count_at,
    reset_optimizer_at,
    reset_params_at,
)

NUM_STEPS = 5
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def init_fn(key):
    """Kernels U(1, 2), biases 7: what is drawn can be told from what is not."""

    def draw(leaf):
        if leaf.ndim < 2:
            return jnp.full_like(leaf, 7)
        leaf_key = jax.random.fold_in(key, leaf.size)
        return jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, 1, 2)

    return jax.tree.map(draw, PARAMS)


LAYERS = {
    "head": {"head/kernel", "head/bias"},
    ("dense_1", "head/bias"): {"dense_1/kernel", "dense_1/bias", "head/bias"},
    (): set(),
    None: tiny.by_path(PARAMS).keys(),
}


@jax.jit
def updates_of_all_layers(grads):
    updates = []
    for layers in LAYERS:
        tx = reset_params_at(at(1), init_fn, layers=layers, key=tiny.FAST_KEY)
        updates.append(tx.update(grads, tx.init(PARAMS), PARAMS)[0])
    return updates


def test_layers_are_drawn_afresh():
    grads = tiny.at(GRADS, 0)
    moved = tiny.by_path(grads)
    for drawn, updates in zip(
        LAYERS.values(), updates_of_all_layers(grads), strict=True
    ):
        new = tiny.by_path(optax.apply_updates(PARAMS, updates))
        for path, update in tiny.by_path(updates).items():
            if path not in drawn:
                np.testing.assert_array_equal(update, moved[path], err_msg=path)
            elif path.endswith("bias"):
                np.testing.assert_allclose(new[path], 7, rtol=1e-6)
            else:
                assert (new[path] > 0.999).all() and (new[path] < 2.001).all()
                assert new[path].std() > 0.1


def test_an_optimizer_starts_afresh_after_an_event():
    schedule = optax.linear_schedule(0.1, 0.01, 3)
    base = optax.adam(schedule)
    tx = reset_optimizer_at(base, at(3))
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    before, _ = tiny.loop(base, PARAMS, GRADS, FEATURES)[2]
    tiny.assert_close(history[2][0], before)
    tiny.assert_equal(history[2][1].base_state, base.init(PARAMS))
    grads, features = jax.tree.map(lambda leaf: leaf[3:], (GRADS, FEATURES))
    after = tiny.loop(base, history[2][0], grads, features)[1]
    tiny.assert_close((history[4][0], history[4][1].base_state), after)
    assert int(history[4][1].events.count) == NUM_STEPS


def test_an_init_that_uses_traced_numbers_and_params():
    """A second copy of the params, after an event, is one of the new params."""

    def run(event, rate):
        base = optax.chain(
            optax.inject_hyperparams(optax.sgd)(rate),
            hare_and_tortoise(at(), decay=0.5),
        )
        tx = reset_optimizer_at(base, at(event))
        params, states = tiny.run(tx, PARAMS, GRADS, FEATURES)
        injected, tortoise = states.base_state
        rates = injected.hyperparams["learning_rate"]
        return rates, tortoise.slow["head"]["bias"], params["head"]["bias"]

    events, rates = jnp.array([2, 4]), jnp.array([0.1, 0.2])
    seen, slow, fast = jax.jit(jax.vmap(run))(events, rates)
    np.testing.assert_array_equal(seen, np.broadcast_to(rates[:, None], (2, 5)))
    is_copy = np.isclose(slow, fast, rtol=1e-6).all(axis=2).astype(int)
    assert is_copy.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_a_full_reset_keeps_counts_of_events_and_keys():
    schedule = at(2, 3)  # Were the counts reset, the second would not come.
    fresh_params = reset_params_at(schedule, init_fn, key=tiny.FAST_KEY)
    tx = reset_optimizer_at(optax.chain(optax.adam(0.1), fresh_params), schedule)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    draws = []
    for step in (1, 2):
        params, state = history[step]
        draws.append(np.asarray(params["head"]["kernel"]))
        assert (draws[-1] > 0.999).all()
        np.testing.assert_allclose(params["head"]["bias"], 7, rtol=1e-6)
        tiny.assert_equal(state.base_state[0], optax.adam(0.1).init(PARAMS))
        assert int(state.base_state[1].count) == step + 1
    assert np.abs(draws[0] - draws[1]).max() > 0.1
    tiny.assert_equal(history[3][1].base_state[0][0].count, jnp.int32(1))


def test_events_inside_continual_backprop_and_around_it():
    head = reset_params_at(at(3), init_fn, layers="head", key=tiny.FAST_KEY)
    units = cbp_jax.continual_backprop(
        optax.chain(optax.sgd(0.1), head),
        tiny.UNITS,
        replacement_rate=0.4,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    history = tiny.loop(reset_optimizer_at(units, at(3)), PARAMS, GRADS, FEATURES)
    biases = [params["head"]["bias"] for params, _ in history]
    np.testing.assert_allclose(biases[2], 7, rtol=1e-6)
    assert np.abs(biases[1] - 7).min() > 0.1
    ages = [state.base_state.units["dense_0"].age.max() for _, state in history]
    assert [int(age) for age in ages[2:4]] == [0, 1] and ages[1] > 0
    keys = [state.base_state.rng_key for _, state in history]
    assert (keys[2] != jax.random.key_data(tiny.FAST_KEY)).any()


def test_errors():
    with pytest.raises(ValueError, match="layers names 'dense', which is not in"):
        reset_params_at(at(1), init_fn, layers="dense", key=tiny.KEY).init(PARAMS)
    tx = reset_params_at(every(1), lambda key: {"params": PARAMS}, key=tiny.KEY)
    with pytest.raises(ValueError, match=r"params/head/bias.*differ.*like the params"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_adam_rel_is_adam_with_a_count_since_the_last_event():
    rate, b1, b2, eps = 0.1, 0.9, 0.99, 1e-8
    kernels = np.asarray(GRADS["head"]["kernel"], np.float64)
    param, mu, nu, count = np.asarray(PARAMS["head"]["kernel"], np.float64), 0, 0, 0
    wanted = []
    for step, grad in enumerate(kernels, start=1):
        count += 1
        mu, nu = b1 * mu + (1 - b1) * grad, b2 * nu + (1 - b2) * grad**2
        first, second = mu / (1 - b1**count), nu / (1 - b2**count)
        param = param - rate * first / (np.sqrt(second) + eps)
        wanted.append(param)
        count = 0 if step in (2, 3) else count
    units = tiny.UNITS
    for base in (
        optax.adam(rate, b1, b2, eps),
        optax.chain(optax.identity(), adam_with_unit_counts(rate, units, b1, b2, eps)),
    ):
        tx = reset_adam_count_at(base, at(2, 3))
        history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
        for (params, _), kernel in zip(history, wanted, strict=True):
            np.testing.assert_allclose(params["head"]["kernel"], kernel, rtol=2e-5)


def test_adam_rel_refuses_a_base_without_adam():
    with pytest.raises(ValueError, match="no fields count, mu and nu. Pass one with A"):
        reset_adam_count_at(optax.sgd(0.1), every(2)).init(PARAMS)

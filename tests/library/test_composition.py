"""The transform inside other transformations: optax wrappers, vmap, swept numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

UNITS = tiny.UNITS[:1]
NUM_STEPS = 6
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def make(base=None, **options):
    options = {
        "replacement_rate": 0.3,
        "maturity_threshold": 2,
        "key": tiny.KEY,
        "max_per_step": 2,
    } | options
    return cbp_jax.continual_backprop(base or optax.sgd(0.1), UNITS, **options)


def lane(key, rate, decay, maturity, step_size):
    """Trains one learner; everything that tells lanes apart is an argument."""
    tx = make(
        optax.sgd(step_size),
        replacement_rate=rate,
        decay_rate=decay,
        maturity_threshold=maturity,
        key=key,
    )
    params, state = tiny.run(tx, PARAMS, GRADS, FEATURES)
    return tiny.at(params, -1), state.replaced, state.units


# Lanes 0 to 2 differ by their seed only, each later one by one number from lane 0.
LANES = (
    jax.random.split(tiny.KEY, 8).at[3:].set(jax.random.split(tiny.KEY, 8)[0]),
    jnp.array([0.3, 0.3, 0.3, 0.0, 0.05, 0.3, 0.3, 0.3]),
    jnp.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.0, 0.9, 0.9]),
    jnp.array([2, 2, 2, 2, 2, 2, 4, 2]),
    jnp.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]),
)


@pytest.fixture(scope="module")
def lanes():
    return jax.device_get(jax.jit(jax.vmap(lane))(*LANES))


def test_a_lane_does_not_depend_on_its_neighbors(lanes):
    solo = jax.jit(lane)
    for index in range(8):
        params, replaced, units = solo(*tiny.at(LANES, index))
        lane_params, lane_replaced, lane_units = tiny.at(lanes, index)
        tiny.assert_equal(lane_replaced, jax.device_get(replaced))
        tiny.assert_close((lane_params, lane_units), (params, units))


def test_nested_vmap_is_a_loop_in_a_loop():
    state, features = tiny.newborn(PARAMS), tiny.at(FEATURES, 0)
    rates, thresholds = jnp.array([0.0, 0.3, 1.0]), jnp.array([0.0, 1.0])

    def at_rate(rate, maturity):
        return tiny.traced_step(PARAMS, state, features, rate, 0.9, maturity)

    along_rates = jax.vmap(at_rate, in_axes=(0, None))
    nested = jax.device_get(
        jax.jit(jax.vmap(along_rates, in_axes=(None, 0)))(rates, thresholds)
    )
    for row, maturity in enumerate(thresholds):
        for column, rate in enumerate(rates):
            params, state_after = tiny.at(nested, (row, column))
            wanted_params, wanted = tiny.step(
                PARAMS, state, features, rate=rate, maturity=maturity
            )
            tiny.assert_equal(state_after.replaced, wanted.replaced)
            tiny.assert_close(
                (params, state_after.units), (wanted_params, wanted.units)
            )
    number = (nested[1].replaced["dense_0"] < 6).sum(axis=2)
    assert number.tolist() == [[0, 1, 6], [0, 0, 0]]


def test_every_seed_draws_its_own_fresh_weights(lanes):
    params, replaced, _ = lanes
    first = replaced["dense_0"][:3, 2]
    np.testing.assert_array_equal(first, np.broadcast_to(first[0], first.shape))
    unit = first[0, 0]
    assert unit < 6
    fresh = params["dense_0"]["kernel"][:3, :, unit]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (fresh[one] != fresh[other]).all()


def test_swept_numbers_reach_their_lanes(lanes):
    _, replaced, units = lanes
    count = (replaced["dense_0"] < 6).sum(axis=(1, 2))
    assert count[3] == 0
    assert 0 < count[4] < count[0]
    started = (replaced["dense_0"] < 6).any(axis=2).argmax(axis=1)
    assert started[0] == 2
    assert started[6] == 4
    # Without memory the running average is the activation of the last step.
    last = np.asarray(FEATURES["dense_0"][-1]).mean(axis=0)
    old = units["dense_0"].age[5, -1] > 0
    np.testing.assert_allclose(
        units["dense_0"].mean_activation[5, -1][old], last[old], rtol=1e-6
    )
    assert old.any()


def test_a_swept_step_size_is_the_base_optimizers(lanes):
    head = lanes[0]["head"]["bias"]
    travelled = head - np.asarray(PARAMS["head"]["bias"])
    np.testing.assert_allclose(travelled[7], travelled[0] / 10, rtol=1e-4, atol=1e-6)


def test_ages_count_optimizer_updates_under_multi_steps():
    cbp = make(
        maturity_threshold=1, initializer=tiny.rows_initializer, key=tiny.FAST_KEY
    )
    tx = optax.MultiSteps(cbp, 2)
    history = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    inner = [state.inner_opt_state for _, state in history]
    ages = [state.units["dense_0"].age for state in inner]
    for step, age in enumerate((0, 1, 1)):
        assert (np.asarray(inner[step].replaced["dense_0"]) == 6).all()
        np.testing.assert_array_equal(ages[step], age)
    # The second optimizer update, at mini-step 3, is the first past the threshold.
    reborn = tiny.mask_of(inner[3].replaced["dense_0"], 6)
    assert reborn.sum() == 1
    np.testing.assert_array_equal(ages[3], np.where(reborn, 0, 2))
    # Its utilities have seen the features of mini-steps 1 and 3.
    seen = np.asarray(FEATURES["dense_0"])[[1, 3]].mean(axis=1)
    np.testing.assert_allclose(
        np.asarray(inner[3].units["dense_0"].mean_activation)[~reborn],
        (0.99 * 0.01 * seen[0] + 0.01 * seen[1])[~reborn],
        rtol=1e-5,
    )


def test_replace_units_as_last_link_of_a_chain():
    options = {
        "replacement_rate": 0.3,
        "maturity_threshold": 2,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    }
    chain = optax.chain(optax.sgd(0.1), cbp_jax.replace_units(UNITS, **options))
    whole = cbp_jax.continual_backprop(optax.sgd(0.1), UNITS, **options)
    num_replaced = 0
    for (params, states), (wanted_params, wanted) in zip(
        tiny.loop(chain, PARAMS, GRADS, FEATURES),
        tiny.loop(whole, PARAMS, GRADS, FEATURES),
        strict=True,
    ):
        tiny.assert_equal(states[-1].replaced, wanted.replaced)
        tiny.assert_close(params, wanted_params)
        num_replaced += tiny.mask_of(wanted.replaced["dense_0"], 6).sum()
    assert num_replaced > 2


def test_inject_hyperparams_over_the_transform_itself():
    make_injected = optax.inject_hyperparams(
        cbp_jax.continual_backprop,
        static_args=("utility_fn", "initializer", "key", "max_per_step"),
    )
    tx = make_injected(
        optax.sgd(0.1),
        UNITS,
        initializer=tiny.rows_initializer,
        replacement_rate=0.0,
        maturity_threshold=0,
        key=tiny.FAST_KEY,
        max_per_step=2,
    )
    step = tiny.still_step(tx)
    features = tiny.at(FEATURES, 0)
    params, state = step(PARAMS, tx.init(PARAMS), features)
    assert (np.asarray(state.inner_state.replaced["dense_0"]) == 6).all()
    state.hyperparams["replacement_rate"] = jnp.float32(0.5)
    _, state = step(params, state, features)
    assert tiny.mask_of(state.inner_state.replaced["dense_0"], 6).sum() == 2
    assert step._cache_size() == 1


def test_learning_can_be_differentiated():
    """The params are linear in the step size while the same units are replaced."""

    def total(step_size):
        params, state = tiny.run(make(optax.sgd(step_size)), PARAMS, GRADS, FEATURES)
        leaves = jax.tree.leaves(tiny.at(params, -1))
        return sum(leaf.sum() for leaf in leaves), state.replaced["dense_0"]

    slope, replaced = jax.jit(jax.grad(total, has_aux=True))(0.1)
    (above, same), (below, _) = (jax.jit(total)(0.1 + side) for side in (5e-3, -5e-3))
    np.testing.assert_array_equal(replaced, same)
    assert (replaced < 6).any()
    np.testing.assert_allclose(slope, (above - below) / 1e-2, rtol=1e-3)


def test_extra_arguments_and_features_are_passed_on_or_ignored():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    base = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    features = tiny.at(FEATURES, 0)
    outcomes = []
    for base_optimizer, extra_args, extra_features in (
        (base, {"value": 3.0}, {}),
        (optax.sgd(-1.0), {"value": 3.0}, {"another": jnp.ones((2, 7))}),
    ):
        tx = make(base_optimizer)
        state = tx.init(PARAMS)
        given = {**features, **extra_features}
        updates, new_state = jax.eval_shape(
            lambda state, tx=tx, given=given, extra=extra_args: tx.update(
                PARAMS, state, PARAMS, features=given, **extra
            ),
            state,
        )
        outcomes.append((updates, new_state.units, new_state.replaced))
    assert seen["value"] == 3.0
    assert set(seen["features"]) == set(tiny.WIDTHS)
    assert {name: age.shape for name, age in seen["unit_ages"].items()} == {
        "dense_0": (6,)
    }
    assert outcomes[0] == outcomes[1]

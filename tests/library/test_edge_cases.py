"""Corners of the algorithm, one test each, through one compiled step."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)
STATE = tiny.newborn(PARAMS)
INT32_MAX = 2**31 - 1


def with_leaf(params, layer, leaf, value):
    return {**params, layer: {**params[layer], leaf: value}}


def replaced(state, name="dense_0"):
    return np.flatnonzero(tiny.mask_of(state.replaced[name], tiny.WIDTHS[name]))


def assert_finite(*trees):
    for leaf in jax.tree.leaves(trees):
        assert np.isfinite(leaf).all()


def test_no_mature_unit():
    owed = tiny.with_units(STATE, "dense_0", budget=2**30 - 1)
    params, state = tiny.step(PARAMS, owed, FEATURES, rate=1.0, maturity=1.0)
    tiny.assert_equal(params, jax.device_get(PARAMS))
    assert replaced(state).size == 0
    assert state.units["dense_0"].budget == 2**30 - 1
    # One step later age 2 exceeds the threshold, and all of them go.
    _, state = tiny.step(params, state, FEATURES, rate=1.0, maturity=1.0)
    assert replaced(state).size == 6


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ties_are_won_by_the_lowest_index(number):
    dead = {name: jnp.zeros_like(feature) for name, feature in FEATURES.items()}
    _, state = tiny.step(PARAMS, STATE, dead, rate=number / 6)
    assert replaced(state).tolist() == list(range(number))


def test_a_tie_of_some_units_only():
    # Units 2 and 4 are dead, unit 3 is better than both and worse than the others.
    feature = jnp.array([[5.0, 5.0, 0.0, 0.1, 0.0, 5.0]] * 2).at[1].multiply(-1)
    params = jax.tree.map(jnp.ones_like, PARAMS)
    for number, wanted in ((1, [2]), (2, [2, 4]), (3, [2, 3, 4])):
        features = {**FEATURES, "dense_0": feature}
        _, state = tiny.step(params, STATE, features, rate=number / 6)
        assert replaced(state).tolist() == wanted


def test_more_due_than_eligible():
    state = tiny.with_units(
        STATE, "dense_0", age=[50, 3, 50, 3, 3, 3], budget=2**30 - 1
    )
    # Two eligible units at rate 1 and a carried unit: three due, two of them forgotten.
    _, state = tiny.step(PARAMS, state, FEATURES, rate=1.0, maturity=40.0)
    assert replaced(state).tolist() == [0, 2]
    assert 0 <= state.units["dense_0"].budget < 2**30
    _, state = tiny.step(PARAMS, state, FEATURES, rate=1.0, maturity=40.0)
    assert replaced(state).size == 0


def test_a_rate_above_one_over_the_width_replaces_several_at_once():
    params, state = tiny.step(PARAMS, STATE, FEATURES, rate=0.5)
    assert replaced(state).size == 3
    assert replaced(state, "dense_1").size == 2
    assert state.units["dense_1"].budget == 2**29
    for unit in replaced(state):
        np.testing.assert_allclose(
            params["dense_0"]["kernel"][:, unit], [0.1, 0.2, 0.3, 0.4], atol=1e-6
        )
    # Half a unit of the second group is carried over, so the next step takes three.
    _, state = tiny.step(params, state, FEATURES, rate=0.5)
    assert replaced(state, "dense_1").size == 3


def test_rate_one_replaces_everybody_every_step():
    params, state = PARAMS, STATE
    for _ in range(3):
        params, state = tiny.step(params, state, FEATURES, rate=1.0)
        assert replaced(state).size == 6
        assert replaced(state, "dense_1").size == 5
    assert_finite(params, state.units)
    np.testing.assert_array_equal(params["head"]["kernel"], 0)
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])


def test_zero_incoming_weights():
    kernel = PARAMS["dense_0"]["kernel"].at[:, 4].set(0.0)
    params = with_leaf(PARAMS, "dense_0", "kernel", kernel)
    params, state = tiny.step(params, STATE, FEATURES, rate=1 / 6)
    assert_finite(params, state.units)
    # It transmits nothing: utility 0, so it is the first to go.
    assert replaced(state).tolist() == [4]


def test_a_dead_layer():
    dead = {**FEATURES, "dense_0": jnp.zeros((2, 6))}
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    state = STATE
    for _ in range(3):
        params, state = tiny.step(params, state, dead, rate=1 / 6)
        assert_finite(params, state.units)
        assert replaced(state).tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_never_wins(value):
    features = {**FEATURES, "dense_0": FEATURES["dense_0"].at[0, 3].set(value)}
    params, state = tiny.step(PARAMS, STATE, features, rate=1 / 6)
    # Five units are ranked and five sixths of a unit are due: nobody yet.
    assert replaced(state).size == 0
    assert state.units["dense_0"].budget == pytest.approx(2**30 * 5 / 6, abs=100)
    assert_finite(state.units, params)
    assert state.units["dense_0"].utility[3] == 0
    assert state.units["dense_0"].mean_activation[3] == 0

    # Nobody else notices.
    _, wanted = tiny.step(PARAMS, STATE, FEATURES, rate=0.0)
    others = [0, 1, 2, 4, 5]
    for field in ("utility", "mean_activation"):
        np.testing.assert_array_equal(
            getattr(state.units["dense_0"], field)[others],
            getattr(wanted.units["dense_0"], field)[others],
        )

    # At rate 1 every unit goes but this one.
    _, state = tiny.step(PARAMS, STATE, features, rate=1.0)
    assert replaced(state).tolist() == others
    assert state.units["dense_0"].age.tolist() == [0, 0, 0, 1, 0, 0]
    # Finite again it is ranked again.
    _, state = tiny.step(PARAMS, state, FEATURES, rate=1.0)
    assert 3 in replaced(state)


def test_a_weight_that_is_not_finite_never_wins():
    kernel = PARAMS["dense_0"]["kernel"].at[0, 1].set(jnp.nan)
    params = with_leaf(PARAMS, "dense_0", "kernel", kernel)
    _, state = tiny.step(params, STATE, FEATURES, rate=1.0)
    assert replaced(state).tolist() == [0, 2, 3, 4, 5]


def nan_in_silence(measured):
    """0 / 0 for a unit that is never active."""
    mean = jnp.mean(jnp.abs(measured.activation), axis=(0, 1))
    return mean / mean


def test_a_utility_that_is_nan_is_warned_of_and_seen_in_the_state():
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        tiny.UNITS[:1],
        utility_fn=nan_in_silence,
        replacement_rate=0.5,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    message = "nan_in_silence of unit group 'dense_0' gives NaN for .* never active\\."
    with pytest.warns(UserWarning, match=message):
        state = tx.init(PARAMS)
    step = tiny.still_step(tx)
    features = {**FEATURES, "dense_0": FEATURES["dense_0"].at[:, 4].set(0.0)}
    params, seen = PARAMS, []
    for _ in range(3):
        params, state = step(params, state, features)
        utility = np.asarray(state.units["dense_0"].utility)
        assert not np.isnan(np.delete(utility, 4)).any()
        seen.append(bool(np.isnan(utility[4])))
        assert 4 not in replaced(state)
    assert seen == [False, True, True]
    assert int(state.num_replaced["dense_0"]) > 0
    # Active, it has a utility as if nothing had been.
    _, state = step(params, state, FEATURES)
    assert state.units["dense_0"].utility[4] == pytest.approx(0.01) or (
        4 in replaced(state)
    )


def test_a_utility_is_only_tried_where_it_can_be():
    """It may fit the batches of a program only, or close over traced arrays."""

    def of_two_examples(measured):
        return jnp.ones((2, 1)).T @ measured.activation[:, 0] @ jnp.eye(6)

    def init(scale):
        def utility_fn(measured):
            return scale * measured.incoming_magnitude

        for function in (utility_fn, of_two_examples):
            cbp_jax.continual_backprop(
                optax.sgd(0.1), tiny.UNITS, utility_fn=function, key=tiny.KEY
            ).init(PARAMS)
        return scale

    jax.jit(jax.vmap(init))(jnp.array([jnp.nan, 1.0]))


@pytest.mark.parametrize(
    ("maturity", "decay", "is_short"),
    [(100, 0.99, True), (290, 0.99, True), (1000, 0.99, False), (25, 0.9, True)],
)
def test_uncorrected_averages_that_have_hardly_begun_are_warned_of(
    maturity, decay, is_short
):
    options = dict(cbp_jax.variants.NATURE) | {"key": tiny.KEY}
    options |= {"maturity_threshold": maturity, "decay_rate": decay}

    def warned(**changes):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cbp_jax.continual_backprop(optax.sgd(0.1), tiny.UNITS, **options | changes)
        return [str(warning.message) for warning in caught]

    messages = warned()
    assert len(messages) == is_short
    for message in messages:
        assert f"maturity_threshold is {maturity} and decay_rate {decay}" in message
        assert "bias_correction=True" in message and "at least 3 / (1 -" in message
    # Nothing is wrong, or nothing is known.
    assert not warned(bias_correction=True)
    assert not warned(replacement_rate=0.0)
    assert not warned(utility_fn=cbp_jax.utility.random)

    @jax.jit
    def traced(maturity):
        assert not warned(maturity_threshold=maturity)

    traced(maturity)


def test_a_finite_utility_after_a_nan_is_ranked_by_its_own_average():
    state = tiny.with_units(STATE, "dense_0", age=[9] * 6, utility=[1.0] * 6)
    broken = {**FEATURES, "dense_0": FEATURES["dense_0"].at[0, 0].set(jnp.nan)}
    _, state = tiny.step(PARAMS, state, broken, rate=0.0)
    assert state.units["dense_0"].utility[0] == 1.0
    np.testing.assert_array_equal(state.units["dense_0"].age, 10)
    silent = {**FEATURES, "dense_0": FEATURES["dense_0"].at[:, 0].set(0.0)}
    # The mean activation was 0 at all times, so a silent unit's utility decays by 0.9.
    _, state = tiny.step(PARAMS, state, silent, rate=0.0)
    assert state.units["dense_0"].utility[0] == pytest.approx(0.9)


def test_decay_zero_ranks_by_the_last_step_alone():
    state = tiny.with_units(
        STATE,
        "dense_0",
        age=[9] * 6,
        utility=[0, 9, 9, 9, 9, 9],
        mean_activation=[1] * 6,
    )
    # The batch's mean is 2; the units deviate from it by 5, 4, 3, 2, 1 and 0.5.
    swing = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    features = {**FEATURES, "dense_0": jnp.stack([2 + swing, 2 - swing])}
    params = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tiny.step(params, state, features, rate=1 / 6, decay=0.0)
    assert replaced(state).tolist() == [5]
    np.testing.assert_allclose(state.units["dense_0"].utility[:5], swing[:5], rtol=1e-6)
    np.testing.assert_allclose(state.units["dense_0"].mean_activation[:5], 2, rtol=1e-6)


def test_ages_saturate():
    ages = [INT32_MAX, INT32_MAX - 1, INT32_MAX - 2, 0, 1, 2]
    state = tiny.with_units(STATE, "dense_0", age=ages)
    _, state = tiny.step(PARAMS, state, FEATURES, rate=0.0)
    wanted = [INT32_MAX, INT32_MAX, INT32_MAX - 1, 1, 2, 3]
    assert state.units["dense_0"].age.tolist() == wanted
    _, state = tiny.step(PARAMS, state, FEATURES, rate=1.0, maturity=1e6)
    assert replaced(state).tolist() == [0, 1, 2]
    assert_finite(state.units)


def test_a_batch_of_one_needs_no_batch_axis():
    bare = {name: feature[0] for name, feature in FEATURES.items()}
    # Twice the same example has the same means.
    twice = {name: jnp.stack([feature] * 2) for name, feature in bare.items()}
    wanted_params, wanted = tiny.step(PARAMS, STATE, twice, rate=0.3)
    params, state = tiny.step(PARAMS, STATE, bare, rate=0.3)
    tiny.assert_equal((params, state.replaced), (wanted_params, wanted.replaced))
    tiny.assert_close(state.units, wanted.units)
    assert replaced(state).size == 1


def test_a_layer_of_one_unit():
    params = {
        "dense_0": {"kernel": jnp.ones((4, 1)), "bias": jnp.ones(1)},
        "head": {"kernel": jnp.ones((1, 3)), "bias": jnp.ones(3)},
    }
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0, momentum=0.9),
        cbp_jax.sequential_units(("dense_0", "head")),
        replacement_rate=0.5,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    step = tiny.still_step(tx)
    history = []
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state, {"dense_0": jnp.ones((2, 1))})
        history.append(int(state.replaced["dense_0"][0]))
    assert history == [1, 0, 1, 0]
    np.testing.assert_allclose(params["dense_0"]["kernel"][:, 0], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(params["head"]["kernel"], 0)
    np.testing.assert_array_equal(params["head"]["bias"], 1)


def test_bfloat16_params():
    params = tiny.make_params(jnp.bfloat16)
    features = jax.tree.map(
        functools.partial(jnp.asarray, dtype=jnp.bfloat16), FEATURES
    )
    tx = cbp_jax.continual_backprop(
        optax.identity(),
        tiny.UNITS[:1],
        replacement_rate=0.5,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    new, state = tiny.still_step(tx)(params, tx.init(params), features)
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.sum() == 3
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(new)} == {"bfloat16"}
    np.testing.assert_array_equal(np.asarray(new["dense_1"]["kernel"])[reborn], 0)
    np.testing.assert_array_equal(np.asarray(new["dense_0"]["bias"])[reborn], 0)
    drawn = np.asarray(new["dense_0"]["kernel"], np.float32)[:, reborn]
    np.testing.assert_allclose(drawn.T, [[0.1, 0.2, 0.3, 0.4]] * 3, atol=2**-7)
    assert state.units["dense_0"].utility.dtype == jnp.float32
    mean = np.asarray(features["dense_0"], np.float32).mean(axis=0)
    np.testing.assert_allclose(
        np.asarray(state.units["dense_0"].mean_activation)[~reborn],
        0.01 * mean[~reborn],
        rtol=1e-5,
    )

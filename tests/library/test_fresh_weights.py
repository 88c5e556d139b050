"""Fresh weights: their distribution, their keys, and options of a single group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny

import cbp_jax

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

NUM_STEPS = 300
PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)
FIRST, SECOND = tiny.UNITS
OWN = SECOND._replace(initializer=jax.nn.initializers.glorot_uniform())
# That of the whole kernel, not of the few columns drawn.
GLOROT_BOUND = np.sqrt(6 / (6 + 5))
RELU_BOUND = np.sqrt(6 / 4)


def make(units=tiny.UNITS, **options):
    options = {"maturity_threshold": 0, "key": tiny.KEY} | options
    return cbp_jax.continual_backprop(optax.sgd(0.0), units, **options)


@pytest.fixture(scope="module")
def columns():
    """All units are redrawn at every step: their incoming weights [T, N, fan_in].

    And the order in which the units of the first group came up at the first step.
    """
    tx = make((FIRST, OWN), replacement_rate=1.0)
    grads = jax.tree.map(lambda leaf: jnp.zeros((NUM_STEPS, *leaf.shape)), PARAMS)
    run = jax.jit(tiny.run, static_argnums=0)
    params, state = run(tx, PARAMS, grads, tiny.make_features(NUM_STEPS))
    for name, width in tiny.WIDTHS.items():
        indices = np.sort(state.replaced[name], axis=1)
        np.testing.assert_array_equal(indices, [np.arange(width)] * NUM_STEPS)
    drawn = {
        name: np.asarray(params[name]["kernel"]).transpose(0, 2, 1)
        for name in tiny.WIDTHS
    }
    return {**drawn, "order": np.asarray(state.replaced["dense_0"][0])}


@pytest.mark.parametrize(
    ("name", "bound"), [("dense_0", RELU_BOUND), ("dense_1", GLOROT_BOUND)]
)
def test_fresh_weights_follow_the_initializer(columns, name, bound):
    weights = columns[name]
    law = scipy.stats.uniform(-bound, 2 * bound)
    assert scipy.stats.kstest(weights.ravel(), law.cdf).pvalue > 1e-3
    # Each unit and each input by itself, too.
    for unit in range(weights.shape[1]):
        assert scipy.stats.kstest(weights[:, unit].ravel(), law.cdf).pvalue > 1e-3
    for row in range(weights.shape[2]):
        assert scipy.stats.kstest(weights[..., row].ravel(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", tiny.WIDTHS)
def test_no_two_units_and_no_two_steps_share_their_weights(columns, name):
    drawn = columns[name].reshape(-1, columns[name].shape[-1])
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    correlation = np.corrcoef(columns[name][..., 0].T)
    others = correlation[~np.eye(len(correlation), dtype=bool)]
    assert np.abs(others).max() < 5 / np.sqrt(NUM_STEPS)


def test_fresh_weights_do_not_depend_on_the_bound_of_a_step(columns):
    """One unit at most gets what the first of six would have got."""
    tx = make((FIRST,), replacement_rate=0.5, max_per_step=1)
    params, state = tiny.still_step(tx)(PARAMS, tx.init(PARAMS), FEATURES)
    unit, *unused = np.asarray(state.replaced["dense_0"])
    assert unit < 6
    assert unused == [6] * 5
    np.testing.assert_allclose(
        params["dense_0"]["kernel"][:, unit],
        columns["dense_0"][0, columns["order"][0]],
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_frozen_group_is_never_replaced_but_measured(columns):
    frozen = FIRST._replace(replacement_rate=0.0)
    tx = make((frozen, OWN), replacement_rate=1.0)
    params, state = tiny.still_step(tx)(PARAMS, tx.init(PARAMS), FEATURES)
    tiny.assert_equal(params["dense_0"], PARAMS["dense_0"])
    np.testing.assert_array_equal(state.replaced["dense_0"], 6)
    np.testing.assert_array_equal(state.units["dense_0"].age, 1)
    assert (np.asarray(state.units["dense_0"].utility) > 0).all()
    # The other group draws what it would have drawn beside a live one.
    np.testing.assert_array_equal(np.sort(state.replaced["dense_1"]), np.arange(5))
    assert columns_of(params, "dense_1") == {
        tuple(column) for column in columns["dense_1"][0].round(4)
    }


def test_each_unit_gets_a_column_of_its_own_and_groups_their_own_rate(columns):
    second = OWN._replace(replacement_rate=0.2)
    tx = make((FIRST, second), replacement_rate=0.5)
    params, state = tiny.still_step(tx)(PARAMS, tx.init(PARAMS), FEATURES)
    assert tiny.mask_of(state.replaced["dense_1"], 5).sum() == 1
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.sum() == 3
    # The draws for three units are the first of the draws for six.
    drawn = {tuple(column) for column in columns["dense_0"][0].round(4)}
    kept = columns_of(PARAMS, "dense_0")
    now = columns_of(params, "dense_0")
    assert len(now & drawn) == 3
    assert len(now & kept) == 3


def columns_of(params, name):
    kernel = np.asarray(params[name]["kernel"])
    return {tuple(column) for column in kernel.T.round(4)}

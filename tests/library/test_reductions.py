"""What the algorithm reduces to, and how many units it replaces in the long run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import _continual_backprop

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)
BUDGET_ONE = 1 << _continual_backprop.BUDGET_BITS


def make(base=None, units=tiny.UNITS, **options):
    options = {"maturity_threshold": 0, "key": tiny.FAST_KEY} | options
    return cbp_jax.continual_backprop(base or optax.sgd(0.1), units, **options)


@pytest.fixture(scope="module")
def run_four_steps():
    grads, features = tiny.make_grads(4, PARAMS), tiny.make_features(4)

    @functools.cache
    def run(**options):
        tx = make(
            optax.sgd(0.1, momentum=0.9),
            units=tiny.UNITS[:1],
            initializer=tiny.rows_initializer,
            **options,
        )
        return tiny.loop(tx, PARAMS, grads, features)

    return run


@pytest.mark.parametrize(
    ("maturity", "is_known"), [(0, True), (math.inf, True), (2**31 - 1, False)]
)
def test_without_end_of_childhood_nobody_is_replaced(
    run_four_steps, maturity, is_known
):
    rate = 0.5 if maturity else 0.0
    history = run_four_steps(replacement_rate=rate, maturity_threshold=maturity)
    assert all((step.replaced["dense_0"] == 6).all() for _, step in history)
    params, state = history[-1]
    units = state.units["dense_0"]
    np.testing.assert_array_equal(units.age, 4)
    assert (np.asarray(units.utility) > 0).all()
    assert int(units.budget) == 0
    np.testing.assert_array_equal(state.rng_key, jax.random.key_data(tiny.FAST_KEY))
    wanted, wanted_state = run_four_steps(replacement_rate=0.0, maturity_threshold=0)[
        -1
    ]
    # Where it might happen XLA may round `p + update` differently.
    check = tiny.assert_equal if is_known else tiny.assert_close
    check((params, state.base_state), (wanted, wanted_state.base_state))


@pytest.fixture(scope="module")
def one_reset():
    """A step of momentum that replaces one unit of each group, and its base's step."""
    base = optax.sgd(0.1, momentum=0.9)
    tx = make(base, replacement_rate=0.15, initializer=tiny.rows_initializer)
    state = tx.init(PARAMS)
    for name in tiny.WIDTHS:
        # Almost one unit is owed, so that one becomes due in either group.
        state = tiny.with_units(state, name, budget=int(0.9 * BUDGET_ONE))
    grads = tiny.at(tiny.make_grads(1, PARAMS), 0)

    @jax.jit
    def step(params, state, base_state):
        updates, state = tx.update(grads, state, params, features=FEATURES)
        base_updates, _ = base.update(grads, base_state, params)
        return (
            optax.apply_updates(params, updates),
            state,
            optax.apply_updates(params, base_updates),
        )

    return jax.device_get(step(PARAMS, state, base.init(PARAMS)))


def test_a_reborn_unit_starts_from_nothing(one_reset):
    params, state, base_params = one_reset
    for name, consumer in (("dense_0", "dense_1"), ("dense_1", "head")):
        (unit,) = np.flatnonzero(tiny.mask_of(state.replaced[name], tiny.WIDTHS[name]))
        assert params[name]["bias"][unit] == 0
        assert base_params[name]["bias"][unit] != 0
        units = state.units[name]
        assert (units.utility[unit], units.mean_activation[unit]) == (0, 0)
        others = np.arange(tiny.WIDTHS[name]) != unit
        np.testing.assert_array_equal(units.age, others)
        assert (units.utility[others] > 0).all()
        assert (units.mean_activation[others] != 0).all()
        # Another reborn unit's incoming weight may lie in this row.
        reborn_next = tiny.mask_of(state.replaced.get(consumer, []), 5)
        row = params[consumer]["kernel"][unit]
        if consumer == "dense_1":
            row = row[~reborn_next]
        np.testing.assert_array_equal(row, 0)


def test_fresh_weights_are_the_initializers_to_an_ulp(one_reset):
    params, state, _ = one_reset
    for name in tiny.WIDTHS:
        unit = state.replaced[name][0]
        old = np.asarray(PARAMS[name]["kernel"])[:, unit]
        drawn = (np.arange(len(old), dtype=np.float32) + 1) / 10
        ulp = np.spacing(np.maximum(np.abs(old), np.abs(drawn)))
        assert (np.abs(params[name]["kernel"][:, unit] - drawn) <= ulp).all()


def test_a_weight_between_two_reborn_units_is_redrawn_as_incoming(one_reset):
    params, state, _ = one_reset
    before, after = state.replaced["dense_0"][0], state.replaced["dense_1"][0]
    assert before < 6
    assert after < 5
    kernel = params["dense_1"]["kernel"]
    assert kernel[before, after] == pytest.approx((before + 1) / 10, rel=1e-6)
    assert np.count_nonzero(kernel[before]) == 1


def test_nothing_else_changes(one_reset):
    params, state, base_params = one_reset
    new, old = tiny.by_path(params), tiny.by_path(base_params)
    for path, mask in tiny.entries_of(state.replaced).items():
        np.testing.assert_allclose(new[path][~mask], old[path][~mask], rtol=1e-6)


def forward(params, inputs):
    first = np.maximum(inputs @ params["dense_0"]["kernel"], 0)
    second = np.maximum(first @ params["dense_1"]["kernel"], 0)
    return second, second @ params["head"]["kernel"] + params["head"]["bias"]


def test_the_output_changes_by_what_the_removed_units_gave():
    initializer = tiny.rows_initializer
    tx = make(units=tiny.UNITS[1:], replacement_rate=0.4, initializer=initializer)
    params, state = tiny.still_step(tx)(PARAMS, tx.init(PARAMS), FEATURES)
    reborn = tiny.mask_of(state.replaced["dense_1"], 5)
    assert reborn.sum() == 2
    inputs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    old, new = jax.device_get((PARAMS, params))
    hidden, output = forward(old, inputs)
    _, new_output = forward(new, inputs)
    lost = hidden[:, reborn] @ old["head"]["kernel"][reborn]
    assert np.abs(lost).max() > 0.1
    np.testing.assert_allclose(new_output, output - lost, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("amount", "wanted"), [(5e-6, 5.0), (1.37e-2, 1.37e4)])
def test_the_budget_is_exact_over_a_million_steps(amount, wanted):
    num_steps = 10**6

    def step(carry, _):
        budget, total = carry
        due, budget = _continual_backprop.accrue_budget(
            budget, jnp.float32(amount), "accumulate", tiny.KEY
        )
        return (budget, total + due), None

    start = (jnp.int32(0), jnp.int32(0))
    budget, total = jax.jit(lambda: jax.lax.scan(step, start, length=num_steps)[0])()
    assert 0 <= budget < BUDGET_ONE
    assert int(total) + int(budget) / BUDGET_ONE == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("amount", [0.37, 2.25])
def test_a_bernoulli_budget_is_right_on_average(amount):
    num_steps = 40_000
    keys = jax.random.split(tiny.KEY, num_steps)
    due, budget = jax.vmap(
        lambda key: _continual_backprop.accrue_budget(
            jnp.int32(0), jnp.float32(amount), "bernoulli", key
        )
    )(keys)
    due = np.asarray(due)
    assert not np.asarray(budget).any()
    assert set(due) == {math.floor(amount), math.floor(amount) + 1}
    fraction = amount % 1
    deviation = math.sqrt(num_steps * fraction * (1 - fraction))
    assert abs(due.sum() - amount * num_steps) < 5 * deviation


LONG = 3000
RATE, CHILDHOOD = 0.013, 20


@pytest.fixture(scope="module", params=["accumulate", "bernoulli"])
def long_run(request):
    tx = make(
        units=tiny.UNITS[:1],
        replacement_rate=RATE,
        maturity_threshold=CHILDHOOD,
        budget=request.param,
        initializer=tiny.rows_initializer,
        key=tiny.KEY,
    )
    grads = jax.tree.map(lambda leaf: jnp.zeros((LONG, *leaf.shape)), PARAMS)
    run = jax.jit(tiny.run, static_argnums=0)
    _, state = run(tx, PARAMS, grads, tiny.make_features(LONG))
    units, replaced = jax.device_get(
        (state.units["dense_0"], state.replaced["dense_0"])
    )
    ages = np.concatenate([np.zeros((1, 6), int), units.age[:-1]]) + 1
    return request.param, ages, units.age, replaced


def test_the_long_run_number_of_replacements(long_run):
    budget, ages, _, replaced = long_run
    expected = RATE * (ages > CHILDHOOD).sum()
    assert 50 < expected < 0.9 * RATE * 6 * LONG
    number = (replaced < 6).sum()
    if budget == "accumulate":
        assert 0 <= expected - number <= 1
    else:
        assert abs(number - expected) < 5 * math.sqrt(expected)
        assert number != round(expected)


def test_replaced_units_are_past_the_threshold_and_newborn_after(long_run):
    _, ages, ages_after, replaced = long_run
    steps, slots = np.nonzero(replaced < 6)
    units = replaced[steps, slots]
    assert ages[steps, units].min() > CHILDHOOD
    reborn = np.zeros(ages.shape, bool)
    reborn[steps, units] = True
    np.testing.assert_array_equal(ages_after, np.where(reborn, 0, ages))

"""Utilities against their formulas, and how units are ranked by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny

import cbp_jax
from cbp_jax import utility

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

BATCH, NUM_UNITS = 7, 5
PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)


def measurements(positions):
    rng = np.random.default_rng(0)
    return cbp_jax.Measurements(
        activation=rng.normal(size=(BATCH, positions, NUM_UNITS)),
        mean_activation=rng.normal(size=NUM_UNITS),
        incoming_magnitude=rng.uniform(0.5, 2, NUM_UNITS),
        outgoing_magnitude=rng.uniform(0.5, 2, (positions, NUM_UNITS)),
        age=np.arange(1, NUM_UNITS + 1),
        count=np.asarray(NUM_UNITS),
        key=tiny.FAST_KEY,
    )


def test_measurements_of_other_shapes_are_errors():
    """All would broadcast, to a wrong utility."""
    m = measurements(positions=2)
    for wrong in (
        {"mean_activation": m.activation},
        {"outgoing_magnitude": m.outgoing_magnitude[0]},
        {"activation": m.activation[0]},
    ):
        with pytest.raises(AssertionError, match="rank|shape"):
            utility.overall(m._replace(**wrong))
    with pytest.raises(ValueError, match="no mean_activation"):
        utility.overall(m._replace(mean_activation=None))


def formulas(m):
    """Returns each utility by the paper's formula, in loops over units."""
    num_positions = m.activation.shape[1]
    out = {name: np.zeros(NUM_UNITS) for name in FORMULAS}
    for unit in range(NUM_UNITS):
        h, w = m.activation[:, :, unit], m.outgoing_magnitude[:, unit]
        deviation = np.abs(h - m.mean_activation[unit])
        signal = lost = 0.0
        for position in range(num_positions):
            signal += np.abs(h[:, position]).mean() * w[position] / num_positions
            lost += deviation[:, position].mean() * w[position] / num_positions
        incoming = m.incoming_magnitude[unit]
        out["contribution"][unit] = signal
        out["mean_corrected_contribution"][unit] = lost
        out["adaptation"][unit] = 1 / incoming
        out["overall"][unit] = lost / incoming
        out["weight_magnitude"][unit] = w.mean()
        out["activation_over_input"][unit] = deviation.mean() / incoming
    return out


FORMULAS = (
    "contribution",
    "mean_corrected_contribution",
    "adaptation",
    "overall",
    "weight_magnitude",
    "activation_over_input",
)


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name, positions):
    m = measurements(positions)
    given = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), m._replace(key=0))
    actual = getattr(utility, name)(given._replace(key=m.key))
    assert actual.shape == (NUM_UNITS,)
    np.testing.assert_allclose(actual, formulas(m)[name], rtol=1e-5)


@pytest.mark.parametrize("name", ["adaptation", "overall", "activation_over_input"])
def test_a_unit_without_incoming_weights_is_worth_nothing(name):
    m = measurements(1)._replace(key=0)
    m = m._replace(incoming_magnitude=m.incoming_magnitude * (np.arange(5) != 2))
    m = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), m)
    value = np.asarray(getattr(utility, name)(m))
    assert value[2] == 0
    assert (np.delete(value, 2) > 0).all()


def spy(seen):
    """A utility that records what it is given, and ranks the units by index."""

    def record(m):
        jax.debug.callback(lambda **given: seen.append(given), **m._asdict())
        return jnp.arange(m.age.size, dtype=jnp.float32)

    return record


@pytest.mark.parametrize(("layout", "outputs"), [("io", 5), ("oi", 5), ("io", 200)])
def test_what_a_utility_sees_of_a_flattened_map(layout, outputs):
    """Means over a unit's own weights; activations from before the optimizer step."""
    rng = np.random.default_rng(0)
    batch, height, width, channels = 3, 2, 1, 4
    conv = rng.normal(size=(3, 3, 2, channels)).astype(np.float32)
    dense = rng.normal(size=(height, width, channels, outputs)).astype(np.float32)
    feature = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    if layout == "io":
        params = {"conv": conv, "dense": dense.reshape(-1, outputs)}
    else:
        by_channel = dense.transpose(3, 2, 0, 1).reshape(outputs, -1)
        params = {"conv": conv.transpose(3, 2, 0, 1), "dense": by_channel}
    params = jax.tree.map(jnp.asarray, params)
    seen = []
    tx = cbp_jax.continual_backprop(
        optax.scale(1.0),
        (cbp_jax.UnitGroup("conv", "conv", outgoing="dense", layout=layout),),
        utility_fn=spy(seen),
        replacement_rate=0.0,
        decay_rate=0.75,
        key=tiny.FAST_KEY,
    )
    update = jax.jit(
        lambda state: tx.update(params, state, params, features={"conv": feature})
    )
    _, state = update(tx.init(params))
    jax.effects_barrier()
    (given,) = seen
    # The step adds the params to themselves, so that the weights after it are double.
    np.testing.assert_allclose(
        given["incoming_magnitude"], 2 * np.abs(conv).mean(axis=(0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        given["outgoing_magnitude"],
        2 * np.abs(dense).mean(axis=3).reshape(-1, channels),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(
        given["activation"], feature.reshape(batch, -1, channels)
    )
    mean = feature.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(given["mean_activation"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(given["age"], 1)
    unit_state = state.units["conv"]
    np.testing.assert_allclose(unit_state.mean_activation, mean / 4, rtol=1e-5)
    np.testing.assert_allclose(unit_state.utility, np.arange(4) / 4, rtol=1e-6)


def make(**options):
    options = {
        "replacement_rate": 1 / 6,
        "maturity_threshold": 0,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(optax.sgd(0.0), tiny.UNITS[:1], **options)


@pytest.mark.parametrize(("bias_correction", "first"), [(True, 1), (False, 2)])
def test_bias_correction_decides_between_young_and_old(bias_correction, first):
    """Unit 1 is worst; unit 2 is better, but its average began with this step."""
    value = np.array([5.0, 1.0, 1.2, 5.0, 5.0, 5.0], np.float32)
    tx = make(bias_correction=bias_correction, utility_fn=lambda _: jnp.asarray(value))
    average = np.where(np.arange(6) == 2, 0.0, value)
    state = tiny.with_units(
        tx.init(PARAMS), "dense_0", age=[999, 999, 0, 999, 999, 999], utility=average
    )
    _, state = tiny.still_step(tx)(PARAMS, state, FEATURES)
    assert int(state.replaced["dense_0"][0]) == first


@pytest.mark.parametrize(("count", "number"), [("eligible", 1), ("all", 2)])
def test_count_decides_how_many_are_due(count, number):
    """Two of six units are eligible: 1.2 are due of them, 3.6 of all."""
    tx = make(count=count, replacement_rate=0.6, maturity_threshold=10)
    step = tiny.still_step(tx)
    state = tx.init(PARAMS)
    _, young = step(PARAMS, state, FEATURES)
    assert (np.asarray(young.replaced["dense_0"]) == 6).all()
    assert int(young.units["dense_0"].budget) == 0
    state = tiny.with_units(state, "dense_0", age=[0, 50, 0, 0, 50, 0])
    _, state = step(PARAMS, state, FEATURES)
    reborn = np.flatnonzero(tiny.mask_of(state.replaced["dense_0"], 6))
    assert len(reborn) == number
    assert set(reborn) <= {1, 4}


def test_random_takes_every_mature_unit_equally_often():
    num_steps = 1500
    tx = make(
        utility_fn=utility.random,
        maturity_threshold=3,
        replacement_rate=0.2,
        key=tiny.KEY,
    )
    grads = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape)), PARAMS)
    features = tiny.make_features(num_steps)
    _, state = jax.jit(tiny.run, static_argnums=0)(tx, PARAMS, grads, features)
    replaced = np.asarray(state.replaced["dense_0"])
    steps, slots = np.nonzero(replaced < 6)
    assert len(steps) > 600
    times = np.bincount(replaced[steps, slots], minlength=6)
    assert scipy.stats.chisquare(times).pvalue > 1e-3
    # Among those who may go, age makes no difference: the rank of the chosen one's age
    # among the eligible is uniform.
    ages = np.asarray(state.units["dense_0"].age)[steps - 1] + 1
    chosen = ages[np.arange(len(steps)), replaced[steps, slots]]
    eligible = ages > 3
    older = ((ages > chosen[:, None]) & eligible).sum(axis=1)
    same = ((ages == chosen[:, None]) & eligible).sum(axis=1)
    rank = (older + same / 2) / eligible.sum(axis=1)
    assert abs(rank.mean() - 0.5) < 5 * rank.std() / np.sqrt(len(rank))

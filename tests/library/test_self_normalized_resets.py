"""Self-normalized resets: made-up firing patterns and times computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import _self_normalized_resets as snr

PARAMS = tiny.make_params()


def make(**options):
    options = {
        "rejection_rate": 0.25,
        "first_threshold": 1000,
        "lowest_threshold": 0,
        "refresh_every": 1,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.self_normalized_resets(optax.sgd(0.1), tiny.UNITS, **options)


def pattern(*units):
    """Firing of the first group's units, strings of '|' (fires) and '.': [T, 6]."""
    length = max(map(len, units))
    rows = [unit.ljust(length, "|") for unit in units]
    rows += ["|" * length] * (6 - len(rows))
    return np.array([[mark == "|" for mark in row] for row in rows]).T


def reset_times(fires, **options):
    """The updates, counted from 0, at which each unit of the first group is reset."""
    num_steps = len(fires)
    features = {
        "dense_0": jnp.asarray(np.where(fires, 1.0, -1.0), jnp.float32)[:, None],
        "dense_1": jnp.ones((num_steps, 1, 5)),
    }
    grads = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape)), PARAMS)
    run = jax.jit(lambda: tiny.run(make(**options), PARAMS, grads, features)[1])
    replaced = np.asarray(run().replaced["dense_0"])
    return [
        np.flatnonzero((replaced == unit).any(axis=1)).tolist() for unit in range(6)
    ]


def test_a_unit_is_reset_when_it_is_silent_for_longer_than_its_percentile():
    """Silences 1, 1, 1, 3: three of four, 75 %, are no longer than 1.

    The fourth ends at update 10 and makes 1 the longest usual silence, so the second
    silent update after it, number 12, is too long.
    """
    regular = "|.|.|.|...|.....|"
    # Silences of 3, 3, 3, 3 from update 0: usual until the fourth of the next, 20.
    slow = "|...|...|...|...|......"
    times = reset_times(pattern(regular, slow))
    assert times[0] == [12]
    assert times[1] == [20]
    assert times[2:] == [[]] * 4


def test_a_reborn_unit_begins_without_history():
    """Reset at 12, it may be silent as long as any newborn: 6 updates, 13 to 18."""
    times = reset_times(pattern("|.|.|.|...|" + 9 * "."), first_threshold=6)
    assert times[0] == [12, 19]


def test_units_that_never_fired_are_reset_after_the_first_threshold():
    times = reset_times(pattern("......", "...|.."), first_threshold=4)
    assert times[0] == [4]
    assert times[1] == []


def test_no_silence_below_the_lowest_threshold_is_too_long():
    times = reset_times(pattern("|.|.|.|...|......"), lowest_threshold=4)
    assert times[0] == [15]


def test_percentiles_are_found_anew_only_every_so_often():
    """At updates 4, 9 and 14; the fourth silence ends at 10."""
    times = reset_times(pattern("|.|.|.|...|........."), refresh_every=5)
    assert times[0] == [14]


def test_rate_zero_resets_nobody():
    for rate in (0.0, jnp.float32(0.0)):
        times = reset_times(pattern(20 * "."), rejection_rate=rate, first_threshold=1)
        assert times == [[]] * 6


def test_a_unit_fires_if_it_does_for_any_example_of_the_batch():
    tx = make(first_threshold=1)
    state, grads = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    feature = jnp.zeros((3, 6)).at[2, 1].set(0.1).at[:, 4].set(jnp.nan)
    features = {"dense_0": feature, "dense_1": jnp.ones((3, 5))}
    _, state = jax.jit(tx.update)(grads, state, PARAMS, features=features)
    np.testing.assert_array_equal(state.units["dense_0"].silence, [1, 0, 1, 1, 1, 1])


def test_bins_hold_every_length_and_are_narrow():
    lengths = jnp.arange(1, 100_000)
    last = snr._last_of_bin(snr._bin_of(lengths))
    assert (last >= lengths).all()
    np.testing.assert_array_equal(last[:7], lengths[:7])
    assert (last <= 1.19 * lengths + 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rejection_rate": 1.0}, r"rejection_rate must be in \[0, 1\), got 1.0"),
        ({"rejection_rate": -0.1}, r"rejection_rate must be in \[0, 1\), got -0.1"),
        ({"refresh_every": 0}, r"refresh_every must be in \[1, inf\], got 0"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

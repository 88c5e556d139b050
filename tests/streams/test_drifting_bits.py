"""The stream of the regression problem: its drift and its targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import draw_bits, tiny_bits

from configs import scr
from experiments.learning.keys import STREAM
from experiments.streams import linear_threshold


def test_one_slow_bit_flips_at_every_period_and_never_between():
    config = tiny_bits()
    bits, _ = draw_bits(config, 0, 150)
    changed = bits[1:, :15] != bits[:-1, :15]
    period_ends = np.arange(1, len(bits)) % 15 == 0
    np.testing.assert_array_equal(changed.sum(axis=1), period_ends)
    flips = changed.sum(axis=0)
    assert flips.sum() == 399
    # Chi-squared of 14 degrees of freedom: 99.99 % lie below 43.
    assert ((flips - 399 / 15) ** 2 / (399 / 15)).sum() < 43


def test_the_paper_flips_one_bit_every_10_000_examples():
    config = scr.get_config("figure_b10")
    bits, _ = draw_bits(config, 7, 3)
    assert bits.shape == (120_000, 21)
    assert bits[:, 20].all()
    changed = (bits[1:, :15] != bits[:-1, :15]).sum(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed) + 1, np.arange(1, 12) * 10**4)
    assert changed.max() == 1


def test_drift_of_all_bits_redraws_them_at_every_period():
    config = tiny_bits(drift="all")
    bits, _ = draw_bits(config, 0, 50)
    changed = (bits[1:, :15] != bits[:-1, :15]).sum(axis=1)
    period_ends = np.arange(1, len(bits)) % 15 == 0
    assert not changed[~period_ends].any()
    assert bits[:, 20].all()
    assert 6.5 < changed[period_ends].mean() < 8.5
    assert abs(bits[:, :15].mean() - 0.5) < 0.06


def test_fast_bits_are_fair_and_new_for_every_example_and_bin():
    bits, _ = draw_bits(tiny_bits(), 0, 100)
    fast = bits[:, 15:20] @ (1 << np.arange(5))
    counts = np.bincount(fast, minlength=32)
    # Chi-squared of 31 degrees of freedom: 99.98 % lie between 8 and 68.
    assert 8 < ((counts - 125) ** 2 / 125).sum() < 68
    # Four standard deviations of 4,000 chances of 1 / 32 are 0.011.
    for distance in range(1, 42):
        same = (fast[distance:] == fast[:-distance]).mean()
        assert abs(same - 1 / 32) < 0.011


def test_lanes_see_streams_of_their_seed_that_follow_from_the_bin_alone():
    config = tiny_bits()
    bits, targets = draw_bits(config, 1, 6)
    # Bin 5 without the bins before it.
    _, last = draw_bits(config, 1, 1, first_task=5)
    np.testing.assert_array_equal(last, targets[-40:])
    other_bits, other_targets = draw_bits(config, 2, 6)
    assert (bits != other_bits).any()
    assert (targets != other_targets).mean() > 0.4
    # The drift does not know of bins.
    longer, _ = draw_bits(tiny_bits(examples_per_task=60), 1, 4)
    np.testing.assert_array_equal(bits[:, :15], longer[:, :15])


@pytest.mark.parametrize(("num_bits", "slow_bits"), [(32, 31), (16, 5)])
def test_other_numbers_of_bits(num_bits, slow_bits):
    bits, targets = draw_bits(tiny_bits(num_bits=num_bits, slow_bits=slow_bits), 0, 3)
    assert bits.shape == (120, num_bits)
    assert bits[:, -1].all()
    changed = (bits[1:, :slow_bits] != bits[:-1, :slow_bits]).sum(axis=1)
    np.testing.assert_array_equal(changed, np.arange(1, 120) % 15 == 0)
    assert np.isfinite(targets).all()


def test_targets_are_those_of_the_network_of_the_lane():
    """The table of a drift period gives what the network gives for each example."""
    config = tiny_bits()
    for seed in (0, 3):
        bits, targets = draw_bits(config, seed, 4)
        key = jax.random.fold_in(jax.random.key(jnp.uint32(seed)), STREAM)
        network = linear_threshold.draw_network(
            jax.random.split(key, 3)[0], 21, 100, 0.7
        )
        expected = linear_threshold.network_outputs(network, jnp.asarray(bits, "f4"))
        np.testing.assert_array_equal(targets, expected)
        assert len(np.unique(targets)) > 3

"""Rows rewritten in place are those of a select, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax._xla import replace_rows

ARRAY = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def replace(array, row, column):
    """Replaces a row and a column by their negatives; 5 and 4 stand for none."""
    mask = (jnp.arange(5)[:, None] == row) | (jnp.arange(4) == column)
    return replace_rows(array, -array, mask, {1: column, 0: row})


def wanted(row, column):
    new = np.array(ARRAY)
    if row < 5:
        new[row] = -ARRAY[row]
    if column < 4:
        new[:, column] = -ARRAY[:, column]
    return new


PLACES = jnp.int32([[1, 2], [5, 3], [4, 4], [5, 4], [0, 0]])


@pytest.mark.parametrize("num_devices", [1, 2])
def test_it_is_a_select_with_and_without_lanes(num_devices, monkeypatch):
    # Arrays that may be sharded are not rewritten in place.
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    expected = np.stack([wanted(*places) for places in PLACES])
    lanes = jax.jit(jax.vmap(replace, in_axes=(None, 0, 0)))(ARRAY, *PLACES.T)
    np.testing.assert_array_equal(lanes, expected)
    one = jax.jit(lambda *arguments: replace(*arguments))  # Traced anew.
    for places, each in zip(PLACES, expected, strict=True):
        np.testing.assert_array_equal(one(ARRAY, *places), each)
    assert ("dynamic_update_slice" in one.lower(ARRAY, *PLACES[0]).as_text()) == (
        num_devices == 1
    )


def test_gradients_pass_where_entries_stay_and_turn_where_they_are_replaced():
    slope = jax.grad(lambda array: replace(array, *PLACES[0]).sum())(ARRAY)
    np.testing.assert_array_equal(slope, wanted(*PLACES[0]) / ARRAY)

"""Noise of random signs: fair, independent, and as strong as normal noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax.optimizers import perturb, random_signs


@pytest.mark.parametrize("shape", [(), (3,), (100, 7), (5, 3, 2, 4)])
def test_all_entries_are_signs_of_the_shape_and_dtype(shape):
    for dtype in (jnp.float32, jnp.bfloat16):
        signs = random_signs(jax.random.key(0), shape, dtype)
        assert signs.shape == shape
        assert signs.dtype == dtype
        np.testing.assert_array_equal(jnp.abs(signs), 1)


def test_signs_are_fair_and_independent_of_their_neighbors_and_of_other_keys():
    keys = jax.random.split(jax.random.key(1), 2000)
    signs = jax.vmap(lambda key: random_signs(key, (40, 3), jnp.float32))(keys)
    flat = np.asarray(signs).reshape(2000, -1)
    # Of 120 means and 14,400 correlations of 2,000 draws each.
    assert np.abs(flat.mean(axis=0)).max() < 4.5 / np.sqrt(2000)
    correlation = flat.T @ flat / 2000 - np.eye(120)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(2000)


def test_the_noise_of_many_updates_is_normal():
    params = {"kernel": jnp.zeros((50, 40)), "bias": jnp.zeros(40)}
    tx = perturb(0.1, key=jax.random.key(2), noise="signs")

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state)
        return (jax.tree.map(jnp.add, params, updates), state), None

    (moved, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=64)
    sums = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    scaled = sums / (0.1 * 8)
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.std() - 1) < 5 / np.sqrt(2 * scaled.size)
    # Kurtosis of a sum of n signs is 3 - 2 / n.
    assert abs((scaled**4).mean() - 3) < 5 * np.sqrt(96 / scaled.size)

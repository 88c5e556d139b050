"""Shrink and perturb at every update, and at events: equations and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers import (
    every,
    perturb,
    shrink_and_perturb,
    shrink_and_perturb_at_events,
)

NUM_STEPS = 4


def run(make):
    """Params after each step, and gradients, in float64 by path."""
    with jax.enable_x64(True):
        params = {"head": tiny.make_params(np.float64)["head"]}
        grads = tiny.make_grads(NUM_STEPS, params)
        history = tiny.loop(make(params), params, grads, tiny.make_features(NUM_STEPS))
        return [tiny.by_path(tree) for tree in (params, *(p for p, _ in history))], (
            tiny.by_path(grads)
        )


def online(weight_decay, noise_scale, rate=0.1, key=tiny.FAST_KEY):
    return run(
        lambda params: shrink_and_perturb(
            optax.sgd(rate), weight_decay=weight_decay, noise_scale=noise_scale, key=key
        )
    )


def test_the_online_form_is_the_equation():
    noise, grads = online(0.0, 1.0, rate=0.0)  # The sums of the noise themselves.
    actual, _ = online(0.3, 0.5)
    for path, grad in grads.items():
        for step in range(NUM_STEPS):
            before = actual[step][path]
            wanted = before - 0.1 * (grad[step] + 0.3 * before)
            wanted = wanted + 0.5 * (noise[step + 1][path] - noise[step][path])
            np.testing.assert_allclose(actual[step + 1][path], wanted, rtol=1e-10)


def test_noise_is_normal_and_new_at_every_update():
    updates = {"kernel": jnp.zeros((60, 60))}
    draws = []
    for key in (tiny.FAST_KEY, jax.random.key(1, impl="unsafe_rbg")):
        tx = perturb(0.2, key=key)
        update, state = jax.jit(tx.update), tx.init(updates)
        for _ in range(2):
            # It needs no params, and ignores what others asked for.
            noise, state = update(updates, state, value=3.0)
            draws.append(np.ravel(noise["kernel"]))
    np.testing.assert_allclose(np.mean(draws, axis=1), 0, atol=0.012)
    np.testing.assert_allclose(np.std(draws, axis=1), 0.2, rtol=0.04)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.06


def at_events(shrink, perturb, key=tiny.FAST_KEY):
    """With events after the second and fourth update."""
    return run(
        lambda params: optax.chain(
            optax.sgd(0.1),
            shrink_and_perturb_at_events(
                every(2),
                lambda key: optax.tree.random_like(key, params),
                **{"shrink": shrink, "perturb": perturb, "key": key},
            ),
        )
    )


def test_at_events_it_is_the_equation():
    fresh, grads = at_events(0.0, 1.0)  # The fresh params themselves.
    actual, _ = at_events(0.7, 0.3)
    for path, grad in grads.items():
        for step in range(NUM_STEPS):
            wanted = actual[step][path] - 0.1 * grad[step]
            if step % 2:
                wanted = 0.7 * wanted + 0.3 * fresh[step + 1][path]
            np.testing.assert_allclose(actual[step + 1][path], wanted, rtol=1e-10)
    draws = [
        np.concatenate([leaf.ravel() for leaf in params.values()])
        for params in (fresh[2], fresh[4])
    ]
    assert abs(np.corrcoef(draws)[0, 1]) < 0.6  # New ones at each event.


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_shrink_1_and_perturb_0_change_no_update_at_an_event(dtype):
    params = {"head": tiny.make_params(dtype)["head"]}
    grads = tiny.at(tiny.make_grads(1, params), 0)

    @jax.jit
    def update(shrink, perturb):
        tx = shrink_and_perturb_at_events(
            every(1),
            lambda key: params,
            shrink=shrink,
            perturb=perturb,
            key=tiny.FAST_KEY,
        )
        return tx.update(grads, tx.init(params), params)

    updates, state = update(1.0, 0.0)
    tiny.assert_equal(updates, grads)
    # There was an event.
    assert (state.rng_key != jax.random.key_data(tiny.FAST_KEY)).any()

"""ReDo picks exactly the dormant units, when it looks and of what it has seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

PARAMS = tiny.make_params()
GRADS = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), PARAMS)


def make(base=None, **options):
    options = {"initializer": tiny.rows_initializer, "key": tiny.FAST_KEY} | options
    return cbp_jax.redo(optax.sgd(0.1) if base is None else base, tiny.UNITS, **options)


def dormant(features, threshold):
    """By its definition, in NumPy: a mask for each group of features [B, N]."""
    means = {name: np.abs(h).mean(axis=0) for name, h in features.items()}
    return {
        name: mean / (mean.mean() + 1e-9) <= threshold for name, mean in means.items()
    }


def run(tx, history, params=PARAMS):
    """Takes a step for each features of a history; the masks of the units reset."""

    @jax.jit
    def step(params, state, features):
        updates, state = tx.update(GRADS, state, params, features=features)
        return optax.apply_updates(params, updates), state

    state, masks = tx.init(params), []
    for features in history:
        params, state = step(params, state, features)
        masks.append(
            {
                name: tiny.mask_of(state.replaced[name], width)
                for name, width in tiny.WIDTHS.items()
            }
        )
    return params, state, masks


def history_of(num_steps, seed=0):
    """Features [2, N] of so many steps; some units much weaker than others."""
    features = tiny.make_features(num_steps, seed=seed)
    weak = {"dense_0": [1, 0.1, 0, 2, 0.02, 1], "dense_1": [0.1, 1, 1, 0, 3]}
    scaled = {
        name: values * jnp.array(weak[name], jnp.float32)
        for name, values in features.items()
    }
    return [tiny.at(scaled, step) for step in range(num_steps)]


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_exactly_the_dormant_units_go_and_only_when_it_looks(threshold):
    history = history_of(6)
    _, _, masks = run(make(threshold=threshold, reset_every=3), history)
    for step, (features, mask) in enumerate(zip(history, masks, strict=True)):
        wanted = dormant(features, threshold)
        for name in tiny.WIDTHS:
            expected = wanted[name] if step in (2, 5) else np.zeros_like(mask[name])
            np.testing.assert_array_equal(mask[name], expected)
    assert masks[2]["dense_0"].any()
    assert not masks[2]["dense_0"].all()


def test_over_an_interval_all_that_was_seen_since_the_last_look_counts():
    """A unit that is 0 in the looked-at batch alone is not dormant."""
    history = history_of(4)
    history[1] = jax.tree.map(lambda h: h.at[:, 0].set(0.0), history[1])
    _, _, masks = run(make(threshold=0.3, reset_every=2, over_interval=True), history)
    for look in (1, 3):
        seen = {
            name: np.concatenate([history[look - 1][name], history[look][name]])
            for name in tiny.WIDTHS
        }
        wanted = dormant(seen, 0.3)
        for name in tiny.WIDTHS:
            np.testing.assert_array_equal(masks[look][name], wanted[name])
    assert not masks[1]["dense_0"][0]
    _, _, in_batch = run(make(threshold=0.3, reset_every=2), history)
    assert in_batch[1]["dense_0"][0]


def test_a_dead_layer_is_reborn_as_a_whole_and_stays_finite():
    history = history_of(1)
    history[0]["dense_0"] = jnp.zeros((2, 6))
    params, state, (mask,) = run(make(reset_every=1), history)
    assert mask["dense_0"].all()
    np.testing.assert_array_equal(params["dense_0"]["bias"], 0)
    for column in params["dense_0"]["kernel"].T:
        np.testing.assert_allclose(column, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    # All that it sends is 0, into the next layer's own dormant units as well.
    assert mask["dense_1"].any()
    np.testing.assert_array_equal(params["dense_1"]["kernel"], 0)
    np.testing.assert_array_equal(state.units["dense_0"].age, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("between_reset", [None, "fresh"])
def test_weights_between_units_that_are_reset_together(between_reset):
    """0 as in the authors' code; fresh on request."""
    options = {"between_reset": between_reset} if between_reset else {}
    params, _, (mask,) = run(make(reset_every=1, **options), history_of(1))
    first, second = mask["dense_0"], mask["dense_1"]
    assert 0 < first.sum() < 6 and 0 < second.sum() < 5
    kernel = params["dense_1"]["kernel"]
    fresh = (np.arange(6)[:, None] + 1) / 10
    is_fresh = np.ones((6, 1)) if between_reset else ~first[:, None]
    wanted = np.broadcast_to(fresh * is_fresh, (6, 5))
    np.testing.assert_allclose(kernel[:, second], wanted[:, second], rtol=1e-5)
    np.testing.assert_array_equal(kernel[first][:, ~second], 0)


def test_moments_of_reset_units_are_newborn():
    _, state, masks = run(make(optax.adam(0.1), reset_every=2), history_of(2))
    reborn = masks[-1]["dense_0"]
    assert 0 < reborn.sum() < 6
    moments = state.base_state[0].mu["dense_0"]["kernel"]
    np.testing.assert_array_equal(moments[:, reborn], 0)
    assert (moments[:, ~reborn] != 0).all()


def test_a_negative_threshold_is_the_base_optimizer_bit_for_bit():
    params, state, masks = run(make(threshold=-1.0, reset_every=1), history_of(3))
    assert not any(mask.any() for step in masks for mask in step.values())
    tx = optax.sgd(0.1)
    base, base_state = PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda p, s: tx.update(GRADS, s, p))
    for _ in range(3):
        updates, base_state = step(base, base_state)
        base = optax.apply_updates(base, updates)
    tiny.assert_equal(params, base)
    np.testing.assert_array_equal(state.units["dense_1"].age, 3)


def test_thresholds_and_intervals_may_be_swept():
    history = history_of(4)
    features = jax.tree.map(lambda *leaves: jnp.stack(leaves), *history)
    grads = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), GRADS)

    def replaced(threshold, every):
        tx = make(threshold=threshold, reset_every=every)
        return tiny.run(tx, PARAMS, grads, features)[1].replaced

    thresholds, intervals = jnp.array([0.0, 0.3, -1.0]), jnp.array([2, 3, 1])
    swept = jax.jit(jax.vmap(replaced))(thresholds, intervals)
    for lane, (threshold, every) in enumerate([(0.0, 2), (0.3, 3), (-1.0, 1)]):
        _, _, masks = run(make(threshold=threshold, reset_every=every), history)
        for step in range(4):
            for name, width in tiny.WIDTHS.items():
                np.testing.assert_array_equal(
                    tiny.mask_of(swept[name][lane, step], width), masks[step][name]
                )


def test_an_interval_below_one_is_an_error():
    with pytest.raises(ValueError, match=r"reset_every must be in \[1, inf\], got 0"):
        make(reset_every=0)

"""What an update leads a param to comes out exact, whatever dtype the update has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import UNITS, make_params
import pytest
import tiny

import cbp_jax
from cbp_jax import optimizers
from cbp_jax.optimizers._fire import orthogonalize

PAIRS = pytest.mark.parametrize(
    "param_dtype, update_dtype",
    [
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("float16", "bfloat16"),
        ("bfloat16", "float16"),
        ("bfloat16", "float32"),
        ("float64", "float32"),
        ("float32", "float64"),
    ],
)


def wide(tree):
    return {path: leaf.astype(np.float64) for path, leaf in tiny.by_path(tree).items()}


def eps_of(dtype):
    return float(jnp.finfo(dtype).eps)


def check(actual, wanted, old, name, ulps=1):
    """Within an ulp of the larger of the old and the wanted value; 0 is 0."""
    eps = ulps * eps_of(actual.dtype)
    actual = np.asarray(actual, np.float64)
    error = np.abs(actual - wanted)
    bound = eps * np.maximum(np.abs(old), np.abs(wanted))
    assert (error <= bound).all(), (name, error.max(), bound.min())
    assert (actual[np.broadcast_to(wanted == 0, actual.shape)] == 0).all(), name


@PAIRS
def test_reset_units_and_transferred_means(param_dtype, update_dtype):
    with jax.enable_x64("float64" in (param_dtype, update_dtype)):
        params, grads = tiny.make_params(param_dtype), tiny.make_params(update_dtype, 7)
        # Params of several dtypes.
        params["head"] = tiny.make_params("float32")["head"]
        base_tx = optax.sgd(0.01)
        tx = cbp_jax.continual_backprop(
            base_tx,
            tiny.UNITS,
            replacement_rate=0.4,
            maturity_threshold=0,
            initializer=tiny.rows_initializer,
            transfer_mean=True,
            key=tiny.FAST_KEY,
        )
        features = tiny.at(tiny.make_features(), 0)

        @jax.jit
        def step(params, grads):
            updates, state = tx.update(
                grads, tx.init(params), params, features=features
            )
            plain, _ = base_tx.update(grads, base_tx.init(params), params)
            new = optax.apply_updates(params, updates)
            return new, optax.apply_updates(params, plain), updates, state

        new, moved, updates, state = step(params, grads)
        new, moved, old = tiny.by_path(new), wide(moved), wide(params)
        for path, leaf in tiny.by_path(updates).items():
            dtypes = leaf.dtype, new[path].dtype
            assert jnp.promote_types(*dtypes) == leaf.dtype, (path, dtypes)
        masks = {
            name: tiny.mask_of(state.replaced[name], width)
            for name, width in tiny.WIDTHS.items()
        }
        reborn, entries = masks["dense_1"], tiny.entries_of(state.replaced)
        assert all(mask.sum() == 2 for mask in masks.values())
        fresh = (np.arange(6)[:, None] + 1) / 10
        wanted = {
            "dense_0/kernel": fresh[:4],
            "dense_0/bias": 0,
            "dense_1/kernel": np.where(reborn, fresh, 0),
            "dense_1/bias": 0,
            "head/kernel": 0,
        }
        for path, value in wanted.items():
            value = np.broadcast_to(value, old[path].shape)[entries[path]]
            check(new[path][entries[path]], value, old[path][entries[path]], path)
        lost = np.asarray(features["dense_1"], np.float64).mean(0) * reborn
        transferred = lost @ moved["head/kernel"]
        np.testing.assert_allclose(
            new["head/bias"].astype(np.float64),
            moved["head/bias"] + transferred,
            atol=20 * eps_of(new["head/bias"].dtype),
        )


def ones(params):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / 3), params)


def transforms(params):
    """For each name a transformation, and where it leads, of old and moved params."""
    fresh = {"init_fn": lambda key: ones(params), "key": tiny.FAST_KEY}
    now = optimizers.at(1)
    third = {path: np.full(leaf.shape, 1 / 3) for path, leaf in wide(params).items()}
    sgd = optax.sgd(1.0)

    def zero(params, key):
        del key
        return jax.tree.map(jnp.zeros_like, params)

    def scaled(old, moved):
        return {
            path: leaf
            if leaf.ndim < 2
            else leaf * np.linalg.norm(old[path]) / np.linalg.norm(leaf)
            for path, leaf in moved.items()
        }

    def orthogonal(old, moved):
        del old
        return {
            path: np.asarray(orthogonalize(jnp.asarray(leaf), 10))
            if leaf.ndim > 1
            else leaf
            for path, leaf in moved.items()
        }

    def each(function):
        return lambda old, moved: {
            path: function(old[path], moved[path]) for path in old
        }

    return {
        "act_at": (optimizers.act_at(now, zero), each(lambda old, moved: 0 * old)),
        "reset_params_at": (
            optimizers.reset_params_at(now, **fresh),
            lambda old, moved: third,
        ),
        "shrink_and_perturb_at_events": (
            optimizers.shrink_and_perturb_at_events(now, shrink=0.5, **fresh),
            each(lambda old, moved: 0.5 * moved + 0.1 / 3),
        ),
        "selective_weight_reinitialization": (
            optimizers.selective_weight_reinitialization(now, fraction=1.0, **fresh),
            lambda old, moved: third,
        ),
        "fire": (optimizers.fire(now), orthogonal),
        "hare_and_tortoise": (
            optimizers.hare_and_tortoise(now, decay=0.7),
            each(lambda old, moved: 0.7 * old + 0.3 * moved),
        ),
        "clip_weights": (
            optimizers.clip_weights(1.0, bounds=lambda path, shape: 0.3),
            each(lambda old, moved: np.clip(moved, -0.3, 0.3)),
        ),
        "clip_weights to 0": (
            optimizers.clip_weights(0.0),
            each(lambda old, moved: 0 * old),
        ),
        "project_norms": (optimizers.project_norms(), scaled),
        "l2_init": (
            optax.chain(optimizers.l2_init(1e-3), optax.scale(1.0)),
            each(lambda old, moved: moved + 1e-3 * (old - 2 * old)),
        ),
        "spectral_regularization": (
            optimizers.spectral_regularization(1e-3, exponent=1.0, key=tiny.FAST_KEY),
            lambda old, moved: {
                "dense_0/bias": moved["dense_0/bias"] + 2e-3 * old["dense_0/bias"]
            },
        ),
        "shrink_and_perturb": (
            optimizers.shrink_and_perturb(
                sgd, weight_decay=1e-3, noise_scale=0.0, key=tiny.FAST_KEY
            ),
            each(lambda old, moved: 2 * old - moved - 1e-3 * old),
        ),
        "upgd": (
            optimizers.upgd(
                1.0,
                noise_scale=0.0,
                weight_decay=1e-3,
                protecting=False,
                key=tiny.FAST_KEY,
            ),
            each(lambda old, moved: 2 * old - moved - 1e-3 * old),
        ),
        "adamw_with_unit_counts": (
            optimizers.adamw_with_unit_counts(1.0, UNITS, 0.5, 0.5, 0.0, 0.125),
            each(lambda old, moved: old - np.sign(moved - old) - 0.125 * old),
        ),
    }


@pytest.mark.slow
@PAIRS
def test_all_that_leads_params_to_a_value(param_dtype, update_dtype):
    """One program for all of them, which compiles faster."""
    with jax.enable_x64("float64" in (param_dtype, update_dtype)):
        params = make_params(param_dtype)
        updates = jax.tree.map(lambda leaf: leaf[::-1] / 64, make_params(update_dtype))
        cases = transforms(params)

        @jax.jit
        def run(params, updates):
            results = {}
            for name, (tx, _) in cases.items():
                # A state of other params, for what keeps them.
                start = params
                if name == "l2_init":
                    start = jax.tree.map(lambda leaf: 2 * leaf, params)
                new_updates, _ = tx.update(updates, tx.init(start), params)
                results[name] = optax.apply_updates(params, new_updates)
            return results, optax.apply_updates(params, updates)

        results, moved = run(params, updates)
        old, moved, tiny_updates = wide(params), wide(moved), wide(updates)
        if param_dtype == "float16":
            del cases["adamw_with_unit_counts"]  # Squares fall below its range.
        for name, (_, lead) in cases.items():
            new = tiny.by_path(results[name])
            exact = {path: old[path] + tiny_updates[path] for path in old}
            for path, wanted in lead(old, exact).items():
                # What starts from the moved param inherits its rounding.
                size = np.maximum(np.maximum(abs(old[path]), abs(moved[path])), 1)
                check(new[path], wanted, size, (name, path), ulps=2)


@PAIRS
def test_noise_is_not_rounded_to_the_update(param_dtype, update_dtype):
    with jax.enable_x64("float64" in (param_dtype, update_dtype)):
        params = {"a": jnp.zeros((4, 3), param_dtype)}
        updates = {"a": jnp.full((4, 3), 0.5, update_dtype)}
        scale = 4 * eps_of(param_dtype)
        tx = optimizers.perturb(scale, key=tiny.FAST_KEY, noise="signs")
        updates, _ = tx.update(updates, tx.init(params), params)
        new = np.asarray(optax.apply_updates(params, updates)["a"], np.float64)
        np.testing.assert_allclose(np.abs(new - 0.5), scale, rtol=0.3)


def test_other_trees_and_moments_keep_their_dtypes():
    params = tiny.make_params("float32")
    replaced = {"dense_0": jnp.array([1]), "dense_1": jnp.array([2])}
    narrow = tiny.make_params("bfloat16", 5)
    new = cbp_jax.reset_units(narrow, tiny.UNITS, replaced, params)
    for path, leaf in tiny.by_path(new).items():
        assert leaf.dtype == jnp.bfloat16, path
    np.testing.assert_array_equal(
        new["dense_0"]["kernel"][:, 1],
        params["dense_0"]["kernel"][:, 1].astype(jnp.bfloat16),
    )

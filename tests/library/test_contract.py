"""What holds around any base optimizer: rate 0, moments, dtypes, structure."""

import functools

from full_optimization import full_jit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

UNITS = cbp_jax.sequential_units(("dense_0", "head"))
LABELS = {"dense_0": "adam", "head": "momentum"}
# Name: the optimizer, and the number that moments are born with.
BASES = {
    "sgd": (optax.sgd(0.1), None),
    "momentum": (optax.sgd(0.1, momentum=0.9), 0.0),
    "adam": (optax.adam(0.1), 0.0),
    "adamw": (optax.adamw(0.1), 0.0),
    "clipped_scheduled_adam": (
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(optax.linear_schedule(0.1, 0.01, 10)),
        ),
        0.0,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(optax.adam)(0.1), 0.0),
    "partition": (
        optax.partition(
            {"adam": optax.adam(0.1), "momentum": optax.sgd(0.1, momentum=0.9)}, LABELS
        ),
        0.0,
    ),
    "lion": (optax.lion(0.1), 0.0),
    "muon": (optax.contrib.muon(0.1), 0.0),
    "rmsprop": (optax.rmsprop(0.1, initial_scale=0.25), 0.25),
    "adagrad": (optax.adagrad(0.1, initial_accumulator_value=0.1), 0.1),
    "adafactor": (optax.adafactor(0.1, min_dim_size_to_factor=5), 0.0),
    "schedule_free_sgd": (optax.contrib.schedule_free_sgd(0.1), "params"),
    "apply_if_finite": (optax.apply_if_finite(optax.adam(0.1), 2), 0.0),
    "adam_with_unit_counts": (
        cbp_jax.optimizers.adam_with_unit_counts(0.1, UNITS),
        0.0,
    ),
}


def make_params(dtype=np.float32):
    """One hidden layer is enough here, and compiles faster than two."""
    params = tiny.make_params(dtype)
    return {"dense_0": params["dense_0"], "head": params["dense_1"]}


# Units are eligible for the first time in the last step.
NUM_STEPS, MATURITY = 3, 2
PARAMS = make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


def wrap(base, **options):
    options = {
        "maturity_threshold": MATURITY,
        "initializer": jax.nn.initializers.ones,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(base, UNITS, **options)


def run(tx, make_extra_args, jit=jax.jit):
    """Takes all steps; checks that they were compiled once."""

    def take_step(params, state, grads, extra_args):
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    step = jit(take_step, donate_argnums=1)
    params, state = PARAMS, tx.init(PARAMS)
    for index in range(NUM_STEPS):
        grads = tiny.at(GRADS, index)
        params, state = step(params, state, grads, make_extra_args(index))
    assert step._cache_size() == 1
    return params, state


@functools.cache
def run_base(name, jit=jax.jit):
    def ages(index):
        return {"unit_ages": {"dense_0": jnp.full(6, index, jnp.int32)}}

    return run(optax.with_extra_args_support(BASES[name][0]), ages, jit)


@functools.cache
def run_wrapped(name, jit=jax.jit, **options):
    def features(index):
        return {"features": tiny.at(FEATURES, index)}

    return run(wrap(BASES[name][0], **options), features, jit)


@pytest.mark.parametrize(
    ("name", "jit"),
    [*((name, jax.jit) for name in BASES), ("momentum", full_jit), ("adam", full_jit)],
)
def test_rate_zero_is_the_base_optimizer_bit_for_bit(name, jit):
    """Also with all of XLA's optimizations, which may fuse it with other arithmetic."""
    params, state = run_wrapped(name, jit, replacement_rate=0.0)
    tiny.assert_equal((params, state.base_state), run_base(name, jit))
    np.testing.assert_array_equal(state.units["dense_0"].age, NUM_STEPS)
    np.testing.assert_array_equal(state.replaced["dense_0"], 6)


@pytest.mark.parametrize("name", BASES)
def test_reborn_units_have_newborn_moments_and_no_other_moment_changes(name):
    _, newborn = BASES[name]
    base_params, base_state = run_base(name)
    params, state = run_wrapped(name, replacement_rate=0.4)
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.sum() == 2
    entries = {
        "dense_0/kernel": np.broadcast_to(reborn, (4, 6)),
        "dense_0/bias": reborn,
        "head/kernel": np.broadcast_to(reborn[:, None], (6, 5)),
        "head/bias": np.zeros(5, bool),
    }
    # The Newton-Schulz steps of Muon magnify how programs round.
    atol = 2e-6 if name == "muon" else 1e-7
    new, old = tiny.by_path(params), tiny.by_path(base_params)
    for path, mask in entries.items():
        assert_untouched(new[path][~mask], old[path][~mask], path, atol)
        assert (new[path][mask] != old[path][mask]).all(), path

    num_reset = 0
    base_leaves = tiny.by_path(base_state)
    for path, leaf in tiny.by_path(state.base_state).items():
        owner = next((name for name in entries if path.endswith(f"/{name}")), None)
        mask = np.zeros(leaf.shape, bool)
        if owner is not None and leaf.shape == entries[owner].shape:
            mask = entries[owner]
            wanted = (
                new[owner][mask] if newborn == "params" else leaf.dtype.type(newborn)
            )
            np.testing.assert_array_equal(leaf[mask], wanted, err_msg=path)
            num_reset += (leaf[mask] != base_leaves[path][mask]).any()
        assert_untouched(leaf[~mask], base_leaves[path][~mask], path, atol)
    # The incoming kernel, the bias and the outgoing kernel, which Adafactor factors.
    assert num_reset >= {"sgd": 0, "adafactor": 2}.get(name, 3)


def assert_untouched(actual, wanted, path, atol=1e-7):
    # Two programs: XLA may round a sum of products in one of them only.
    np.testing.assert_allclose(actual, wanted, rtol=2e-6, atol=atol, err_msg=path)


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"moments": "keep"}, ("mu", "nu")), ({"keep_state": ("mu",)}, ("mu",))],
)
def test_moments_are_kept_on_request(options, kept):
    _, state = run_wrapped("adam", replacement_rate=0.4, **options)
    _, base_state = run_base("adam")
    reborn = tiny.mask_of(state.replaced["dense_0"], 6)
    assert reborn.sum() == 2
    for field in ("mu", "nu"):
        moment, base_moment = (
            getattr(adam_state, field)["dense_0"]["kernel"]
            for adam_state in (state.base_state[0], base_state[0])
        )
        if field in kept:
            assert_untouched(moment, base_moment, field)
        else:
            np.testing.assert_array_equal(moment[:, reborn], 0)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", BASES)
def test_dtypes_and_structure_are_kept(name, dtype):
    base, _ = BASES[name]
    with jax.enable_x64(dtype == "float64"):
        params = make_params(dtype)
        features = tiny.at(tiny.make_features(), 0)
        tx = wrap(base)
        state = tx.init(params)

        def update(state):
            return tx.update(params, state, params, features=features)

        updates, next_state = jax.eval_shape(update, state)
        base_updates, _ = jax.eval_shape(
            lambda: base.update(params, base.init(params), params)
        )
        assert types(updates) == types(base_updates)
        assert types(next_state) == types(state)
        assert types(next_state.base_state) == types(base.init(params))
        new_params = jax.eval_shape(optax.apply_updates, params, updates)
        assert types(new_params) == types(params)
        # Raises if the branches return different types.
        jax.eval_shape(
            lambda state: jax.lax.cond(
                True, lambda s: update(s)[1], lambda s: s, state
            ),
            state,
        )
    statistics = jnp.float64 if dtype == "float64" else jnp.float32
    for unit_state in next_state.units.values():
        assert unit_state.utility.dtype == statistics
        assert unit_state.mean_activation.dtype == statistics
        assert unit_state.age.dtype == jnp.int32
        assert unit_state.budget.dtype == jnp.int32

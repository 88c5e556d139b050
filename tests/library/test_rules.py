"""What holds for every rule of the engine, one of a user's own among them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

NUM_STEPS = 4
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)


class OwnState(NamedTuple):
    age: jax.Array
    peak: jax.Array


def own_rule(base, units, *, limit, **options):
    """Resets every unit that has ever been more active than a limit, at once."""

    def init(num_units, dtype):
        return OwnState(jnp.zeros(num_units, jnp.int32), jnp.zeros(num_units, dtype))

    def update(state, measurements):
        strongest = jnp.max(jnp.abs(measurements.activation), axis=(0, 1))
        state = state._replace(peak=jnp.maximum(state.peak, strongest))
        return state, cbp_jax.choose_where(state.peak > limit)

    return cbp_jax.reset_by_rule(base, units, cbp_jax.Rule(init, update), **options)


def low_utility(base, units, *, rate, utility_fn=cbp_jax.utility.overall, **options):
    return cbp_jax.continual_backprop(
        base,
        units,
        replacement_rate=rate,
        maturity_threshold=1,
        max_per_step=2,
        utility_fn=utility_fn,
        **options,
    )


# Name: the transformation, what its strength is called, and two strengths.
RULES = {
    "continual_backprop": (low_utility, "rate", (0.2, 0.4)),
    "random": (
        lambda *args, **options: low_utility(
            *args, utility_fn=cbp_jax.utility.random, **options
        ),
        "rate",
        (0.2, 0.4),
    ),
    "inverted": (
        lambda *args, **options: low_utility(
            *args,
            utility_fn=cbp_jax.utility.inverted(cbp_jax.utility.overall),
            **options,
        ),
        "rate",
        (0.2, 0.4),
    ),
    "redo": (
        lambda *args, **options: cbp_jax.redo(*args, reset_every=2, **options),
        "threshold",
        (0.5, 0.9),
    ),
    "self_normalized_resets": (
        lambda *args, **options: cbp_jax.self_normalized_resets(
            *args, first_threshold=1, lowest_threshold=0, refresh_every=1, **options
        ),
        "rejection_rate",
        (0.1, 0.6),
    ),
    "own": (own_rule, "limit", (1.5, 1.0)),
    "gradient": (
        functools.partial(low_utility, utility_fn=cbp_jax.utility.gradient),
        "rate",
        (0.2, 0.4),
    ),
    "regrama": (
        functools.partial(cbp_jax.regrama, reset_every=2),
        "threshold",
        (0.9, 1.0),
    ),
    # At the first strength, units below the mean of their layer are reset completely.
    "cpr": (
        functools.partial(
            cbp_jax.cpr,
            reset_every=2,
            decay_rate=0.5,
            moments="reset",
            biases="reset",
        ),
        "replacement_rate",
        (1.0, 0.5),
    ),
}

# Those that only measure differently are slow tests: the engine is the same.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ("gradient", "regrama")
    else name
    for name in RULES
]


def make(name, base=None, strength=None, units=tiny.UNITS, key=tiny.FAST_KEY):
    rule, option, strengths = RULES[name]
    return rule(
        optax.adam(0.1) if base is None else base,
        units,
        initializer=tiny.rows_initializer,
        key=key,
        **{option: strengths[0] if strength is None else strength},
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpr"])
def test_whoever_is_chosen_the_same_entries_are_reset(name):
    """After each update: fresh weights in, none out, newborn moments and rule state."""
    tx, num_reset = make(name), 0
    for params, state in tiny.loop(tx, PARAMS, GRADS, FEATURES):
        masks = {n: tiny.mask_of(state.replaced[n], w) for n, w in tiny.WIDTHS.items()}
        num_reset += sum(mask.sum() for mask in masks.values())
        first, second = masks["dense_0"], masks["dense_1"]
        fresh = np.broadcast_to([[0.1], [0.2], [0.3], [0.4]], (4, first.sum()))
        np.testing.assert_allclose(params["dense_0"]["kernel"][:, first], fresh, 1e-6)
        np.testing.assert_array_equal(params["dense_0"]["bias"][first], 0)
        np.testing.assert_array_equal(params["head"]["kernel"][second], 0)
        kept = params["dense_1"]["kernel"][:, ~second]
        np.testing.assert_array_equal(kept[first], 0)
        # Reset together, units are joined by fresh weights, in ReDo by none.
        between = params["dense_1"]["kernel"][np.ix_(first, second)]
        joined = 0 if name == "redo" else (np.nonzero(first)[0][:, None] + 1) / 10
        np.testing.assert_allclose(
            between, np.broadcast_to(joined, between.shape), rtol=1e-5
        )
        moments = state.base_state[0].nu
        np.testing.assert_array_equal(moments["dense_0"]["kernel"][:, first], 0)
        np.testing.assert_array_equal(moments["head"]["kernel"][second], 0)
        assert (moments["head"]["kernel"][~second] > 0).all()
        for group, mask in masks.items():
            np.testing.assert_array_equal(state.units[group].age[mask], 0)
            assert (state.units[group].age[~mask] > 0).all()
    assert num_reset >= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_lane_equals_its_solo_run(name):
    _, _, strengths = RULES[name]
    keys = jax.random.split(tiny.KEY, 2)

    def train(strength, key):
        params, state = tiny.run(
            make(name, strength=strength, key=key), PARAMS, GRADS, FEATURES
        )
        return params, state.replaced

    strengths = jnp.asarray(strengths)
    together = jax.jit(jax.vmap(train))(strengths, keys)
    train = jax.jit(train)
    for lane in range(2):
        params, replaced = train(strengths[lane], keys[lane])
        tiny.assert_close(tiny.at(together[0], lane), params)
        tiny.assert_equal(tiny.at(together[1], lane), replaced)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_structure_are_kept(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = tiny.make_params(dtype)
        features = tiny.at(tiny.make_features(), 0)
        tx = make(name)
        state = tx.init(params)
        updates, next_state = jax.eval_shape(
            lambda state: tx.update(params, state, params, features=features), state
        )
        assert types(updates) == types(params)
        assert types(next_state) == types(state)


@pytest.mark.parametrize("name", NAMES)
def test_multi_steps_and_injected_hyper_parameters_can_be_the_base(name):
    base = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    params, _ = tiny.loop(make(name, base), PARAMS, GRADS, FEATURES)[-1]
    expected, _ = tiny.loop(make(name, optax.sgd(0.1)), PARAMS, GRADS, FEATURES)[-1]
    tiny.assert_close(params, expected)

    inside = optax.MultiSteps(make(name), every_k_schedule=2)
    (_, first), *_, (_, last) = tiny.loop(inside, PARAMS, GRADS, FEATURES)
    assert not np.any(first.inner_opt_state.units["dense_0"].age)
    assert last.inner_opt_state.units["dense_0"].age.max() == NUM_STEPS // 2


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_group_is_left_alone(name):
    frozen = (tiny.UNITS[0]._replace(replacement_rate=0.0), tiny.UNITS[1])
    histories = tiny.loop(make(name, units=frozen), PARAMS, GRADS, FEATURES)
    replaced = [state.replaced for _, state in histories]
    assert all((step["dense_0"] == 6).all() for step in replaced)
    assert any((step["dense_1"] < 5).any() for step in replaced)


@pytest.mark.parametrize("num_vmaps", [0, 1, 2])
@pytest.mark.parametrize("name", ["redo", "self_normalized_resets", "own", "cpr"])
def test_where_all_units_may_go_fresh_weights_are_laid_only_when_one_does(
    name, num_vmaps
):
    tx = make(name)

    def update(grads, state, params, features):
        return tx.update(grads, state, params, features=features)

    arguments = (tiny.at(GRADS, 0), tx.init(PARAMS), PARAMS, tiny.at(FEATURES, 0))
    for _ in range(num_vmaps):
        update = jax.vmap(update)
        arguments = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), arguments)
    found = set(tiny.primitives(jax.make_jaxpr(update)(*arguments).jaxpr))
    work = {"top_k", "argmax", "gather"}
    assert work <= {primitive for primitive, is_inside in found if is_inside}
    assert not work & {primitive for primitive, is_inside in found if not is_inside}


def test_scores_of_inf_and_nan_are_never_chosen():
    """However many a rule asks for."""
    score = jnp.array([jnp.nan, 2.0, jnp.inf, 1.0, -jnp.inf, jnp.nan])

    def update(state, measurements):
        del measurements
        return state, cbp_jax.Choice(score, jnp.int32(5))

    def init(num_units, dtype):
        return OwnState(jnp.zeros(num_units, jnp.int32), jnp.zeros(num_units, dtype))

    rule = cbp_jax.Rule(init, update)
    tx = cbp_jax.reset_by_rule(
        optax.sgd(0.1),
        tiny.UNITS[:1],
        rule,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    _, state = tiny.still_step(tx)(PARAMS, tx.init(PARAMS), tiny.at(FEATURES, 0))
    assert state.replaced["dense_0"].tolist() == [4, 3, 1, 6, 6, 6]

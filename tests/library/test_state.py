"""The state is a plain pytree: it can be stored, restored, measured and mapped."""

import io

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

NUM_STEPS = 6
PARAMS = tiny.make_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
FEATURES = tiny.make_features(NUM_STEPS)
LAYERS = ("dense_0", "dense_1", "head")


def make(rate=0.2, key=tiny.FAST_KEY, **options):
    return cbp_jax.continual_backprop(
        optax.adam(0.1),
        LAYERS,
        replacement_rate=rate,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=key,
        **options,
    )


@pytest.fixture(scope="module")
def history():
    return tiny.loop(make(), PARAMS, GRADS, FEATURES)


def through_flax(state):
    return serialization.from_bytes(state, serialization.to_bytes(state))


def through_numpy(state):
    leaves, treedef = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as arrays:
        return treedef.unflatten([arrays[name] for name in arrays.files])


@pytest.mark.parametrize("store", [through_flax, through_numpy])
@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_training_goes_on_from_a_stored_state(store, impl):
    tx = make(key=jax.random.key(0, impl=impl))
    whole = tiny.loop(tx, PARAMS, GRADS, FEATURES)
    params, state = whole[2]
    restored = store(state)
    tiny.assert_equal(restored, state)

    @jax.jit
    def step(params, state, grads, features):
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    for index in range(3, NUM_STEPS):
        params, restored = step(
            params, restored, tiny.at(GRADS, index), tiny.at(FEATURES, index)
        )
    tiny.assert_equal(params, whole[-1][0])
    tiny.assert_equal(restored, whole[-1][1])


def test_a_state_of_one_rate_is_a_state_of_any_other(history):
    shapes = [
        jax.tree.map(jnp.shape, tx.init(PARAMS))
        for tx in (make(0.01), make(0.9), make(0.5, max_per_step=2))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    params, state = history[-1]
    updates, new = jax.jit(make(1.0).update)(
        tiny.at(GRADS, 0), state, params, features=tiny.at(FEATURES, 0)
    )
    assert int(new.num_replaced["dense_0"] - state.num_replaced["dense_0"]) == 6
    np.testing.assert_array_equal(np.sort(new.replaced["dense_0"]), np.arange(6))
    assert np.isfinite(updates["dense_0"]["kernel"]).all()


def test_the_units_replaced_are_counted(history):
    total = dict.fromkeys(tiny.WIDTHS, 0)
    for index, (_, state) in enumerate(history):
        assert int(state.count) == index + 1
        for name, width in tiny.WIDTHS.items():
            total[name] += tiny.mask_of(state.replaced[name], width).sum()
            assert int(state.num_replaced[name]) == total[name]
    # 0.2 of 6 and of 5 units, at each of 6 updates.
    assert total == {"dense_0": 7, "dense_1": 6}


def test_optax_can_measure_and_map_the_state(history):
    params, state = history[-1]
    # Squares of large integers, such as a key's, overflow in optax; it does not refuse.
    assert optax.tree.norm(state).shape == ()
    assert optax.tree.norm(state.base_state) > 0
    doubled = optax.tree.map_params(make(), lambda leaf, p: leaf + p, state, params)
    adam, old = doubled.base_state[0], state.base_state[0]
    tiny.assert_equal(adam.mu, jax.tree.map(jnp.add, old.mu, params))
    tiny.assert_equal(adam.count, old.count)
    tiny.assert_equal(doubled.units, state.units)
    tiny.assert_equal(doubled._replace(base_state=()), state._replace(base_state=()))


def test_a_rate_may_follow_a_schedule():
    """Of 1,000 units 1 % in the first two updates, 10 % after them, 0 in the other."""
    units = (
        cbp_jax.UnitGroup("wide", "in", outgoing="out"),
        cbp_jax.UnitGroup(
            "other",
            "other_in",
            outgoing="other_out",
            replacement_rate=optax.constant_schedule(0.0),
        ),
    )
    params = {
        "in": jnp.ones((1, 1000)),
        "out": jnp.ones((1000, 1)),
        "other_in": jnp.ones((1, 3)),
        "other_out": jnp.ones((3, 1)),
    }
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        units,
        replacement_rate=optax.piecewise_constant_schedule(0.01, {2: 10.0}),
        maturity_threshold=0,
        max_per_step=100,
        key=tiny.FAST_KEY,
    )
    state, step = tx.init(params), tiny.still_step(tx)
    features = {"wide": jnp.ones((1, 1000)), "other": jnp.ones((1, 3))}
    numbers = []
    for _ in range(4):
        params, state = step(params, state, features)
        numbers.append(int(state.num_replaced["wide"]))
    # In float32 0.01 x 10 x 1,000 is a little less than 100.
    assert numbers == [10, 20, 119, 219]
    assert int(state.num_replaced["other"]) == 0


def test_a_schedule_needs_a_bound():
    with pytest.raises(ValueError, match="is a schedule, so the number.*max_per_step"):
        make(optax.constant_schedule(0.1))


@pytest.mark.slow
def test_rates_may_be_injected():
    def build(replacement_rate, learning_rate):
        return cbp_jax.continual_backprop(
            optax.sgd(learning_rate),
            LAYERS,
            replacement_rate=replacement_rate,
            max_per_step=6,
            maturity_threshold=0,
            key=tiny.FAST_KEY,
        )

    tx = optax.inject_hyperparams(build)(replacement_rate=1.0, learning_rate=0.0)
    state = tx.init(PARAMS)
    arguments = tiny.at(GRADS, 0), state, PARAMS
    _, state = tx.update(*arguments, features=tiny.at(FEATURES, 0))
    assert int(state.inner_state.num_replaced["dense_0"]) == 6
    state.hyperparams["replacement_rate"] = jnp.float32(0.0)
    _, state = tx.update(arguments[0], state, PARAMS, features=tiny.at(FEATURES, 0))
    assert int(state.inner_state.num_replaced["dense_0"]) == 6


def test_multi_steps_belong_around_and_not_inside():
    inside = cbp_jax.continual_backprop(
        optax.MultiSteps(optax.sgd(0.1), 2), LAYERS, key=tiny.FAST_KEY
    )
    with pytest.raises(
        ValueError, match=r"continual backprop instead: optax.MultiSteps\("
    ):
        inside.init(PARAMS)
    around = optax.MultiSteps(make(1.0), 2)
    state = around.init(PARAMS)
    for index, wanted in enumerate((0, 6)):
        _, state = around.update(
            tiny.at(GRADS, index), state, PARAMS, features=tiny.at(FEATURES, index)
        )
        assert int(state.inner_opt_state.num_replaced["dense_0"]) == wanted


@pytest.mark.slow
def test_units_are_found_with_and_without_the_collection_of_params():
    tx = make(1.0)
    variables, grads = {"params": PARAMS}, {"params": tiny.at(GRADS, 0)}
    features = tiny.at(FEATURES, 0)
    updates, state = tx.update(grads, tx.init(variables), variables, features=features)
    wanted, wanted_state = tx.update(
        grads["params"], tx.init(PARAMS), PARAMS, features=features
    )
    tiny.assert_close(updates["params"], wanted)
    tiny.assert_equal(state.replaced, wanted_state.replaced)
    prefixed = cbp_jax.continual_backprop(
        optax.adam(0.1),
        [f"params/{name}" for name in LAYERS],
        replacement_rate=1.0,
        maturity_threshold=0,
        key=tiny.FAST_KEY,
    )
    for tree in (variables, PARAMS):
        grads = jax.tree.map(jnp.ones_like, tree)
        _, state = prefixed.update(grads, prefixed.init(tree), tree, features=features)
        assert int(state.num_replaced["params/dense_0"]) == 6


@pytest.mark.parametrize("units", [("dense_0",), ("dense_0", tiny.UNITS[1])])
def test_names_that_are_no_chain_are_refused(units):
    with pytest.raises(ValueError, match="two different layer paths|UnitGroups, or"):
        cbp_jax.continual_backprop(optax.sgd(0.1), units, key=tiny.FAST_KEY)


def test_a_scale_may_be_born_silent():
    group = cbp_jax.UnitGroup(
        "block", "in", None, "out", norm_scale="scale", norm_scale_value=0.0
    )
    params = {"in": jnp.ones((2, 3)), "scale": jnp.ones(3), "out": jnp.ones((3, 2))}
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.1),
        (group,),
        replacement_rate=1.0,
        maturity_threshold=0,
        key=tiny.FAST_KEY,
    )
    features = {"block": jnp.ones((1, 3))}
    new, _ = tiny.still_step(tx)(params, tx.init(params), features)
    np.testing.assert_array_equal(new["scale"], 0)


def test_a_raw_key_is_as_good_as_a_typed_one():
    raw, typed = (
        make(key=key).init(PARAMS).rng_key
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(raw, typed)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"a PRNG key, got 0\. Use jax\.random\.key\(seed\)"),
        (
            jax.random.split(jax.random.key(0), 3),
            r"a single.*got.*\(3,\)\. Build.*vmap",
        ),
        (np.zeros((3, 2), np.uint32), r"a single PRNG key, got.*\(3,\)"),
    ],
)
def test_what_is_not_one_key_is_refused(key, message):
    with pytest.raises(ValueError, match=message):
        make(key=key).init(PARAMS)


def test_a_state_of_another_generator_is_refused():
    state = make(key=jax.random.key(0, impl="rbg")).init(PARAMS)
    tx = make(key=jax.random.key(0, impl="threefry2x32"))
    with pytest.raises(ValueError, match="key of 4 words.*generator.*fry"):
        tx.update(tiny.at(GRADS, 0), state, PARAMS, features=tiny.at(FEATURES, 0))

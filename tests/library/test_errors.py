"""Every error names what is wrong, where, and what would be right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny

import cbp_jax

PARAMS = tiny.make_params()
FEATURES = tiny.at(tiny.make_features(), 0)
FIRST, SECOND = tiny.UNITS


def make(units=tiny.UNITS, base=None, **options):
    options = {"key": tiny.KEY} | options
    return cbp_jax.continual_backprop(base or optax.sgd(0.1), units, **options)


def message_of(call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def assert_names(message, *parts):
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"


@pytest.mark.parametrize("field", ["incoming", "bias", "outgoing", "norm_scale"])
def test_a_wrong_path_lists_the_leaves(field):
    units = (FIRST, SECOND._replace(**{field: "dense_7/kernel"}))
    message = message_of(make(units).init, PARAMS)
    assert_names(message, "'dense_1'", field, "'dense_7/kernel'", "not in the params")
    assert_names(message, "'dense_0/kernel'", "'dense_1/bias'", "'head/kernel'")


def test_a_path_of_several_leaves():
    message = message_of(make((FIRST._replace(incoming="dense_0"),)).init, PARAMS)
    assert_names(message, "'dense_0'", "incoming", "several leaves", "'dense_0/kernel'")


@pytest.mark.parametrize("field", ["incoming", "outgoing"])
def test_a_group_without_a_kernel(field):
    message = message_of(make((FIRST._replace(**{field: None}),)).init, PARAMS)
    assert_names(message, "'dense_0'", f"no {field} leaf")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        # The kernel of another layer: neither 6 inputs nor a multiple of them.
        ({"outgoing": "head/kernel"}, ("outgoing", "'head/kernel'", (5, 3))),
        ({"bias": "dense_1/bias"}, ("bias", "'dense_1/bias'", (5,))),
        ({"norm_scale": "head/bias"}, ("norm_scale", "'head/bias'", (3,))),
        (
            {"incoming": ("dense_0/kernel", "head/kernel")},
            ("incoming", "'head/kernel'", (5, 3)),
        ),
    ],
)
def test_shapes_that_do_not_fit(fields, parts):
    message = message_of(make((FIRST._replace(**fields),)).init, PARAMS)
    assert_names(message, "'dense_0'", "6 units", "'dense_0/kernel'", (4, 6), *parts)


def test_a_kernel_of_one_axis():
    message = message_of(make((FIRST._replace(incoming="dense_0/bias"),)).init, PARAMS)
    assert_names(
        message, "'dense_0'", "incoming", "'dense_0/bias'", (6,), "two or more"
    )


def test_consumers_that_flatten_different_maps():
    params = {
        "conv": jnp.ones((3, 3, 1, 2)),
        "large": jnp.ones((8, 3)),
        "small": jnp.ones((12, 3)),
    }
    units = cbp_jax.UnitGroup("conv", "conv", outgoing=("large", "small"))
    message = message_of(make((units,)).init, params)
    assert_names(message, "'conv'", "'small'", (12, 3), "number of positions")


def test_an_unknown_layout():
    message = message_of(make((FIRST._replace(layout="hwio"),)).init, PARAMS)
    assert_names(message, "'dense_0'", "'hwio'", ["io", "oi"])


def test_names_and_incoming_leaves_are_unique():
    message = message_of(make((FIRST, SECOND._replace(name="dense_0"))).init, PARAMS)
    assert_names(message, "own name", ["dense_0"])
    message = message_of(make((FIRST, FIRST._replace(name="again"))).init, PARAMS)
    assert_names(message, "own incoming leaf", ["dense_0/kernel"])


def test_no_units():
    assert_names(message_of(make, ()), "units is empty", "UnitGroup")


@pytest.mark.parametrize("names", [(), ("head",), ("dense_0", "dense_0")])
def test_a_chain_of_fewer_than_two_layers(names):
    message = message_of(cbp_jax.sequential_units, names)
    assert_names(message, "two different layer paths", names)


def update(tx, features=FEATURES, params=PARAMS):
    state = jax.eval_shape(tx.init, PARAMS)
    return jax.eval_shape(
        lambda state: tx.update(PARAMS, state, params, features=features), state
    )


def test_missing_params():
    assert_names(message_of(update, make(), params=None), "params", "tx.update(")


@pytest.mark.parametrize("features", [None, {}, {"dense_0": FEATURES["dense_0"]}])
def test_missing_features(features):
    message = message_of(update, make(), features)
    missing = [name for name in tiny.WIDTHS if name not in (features or {})]
    assert_names(message, f"missing: {missing}", f"given: {list(features or {})}")
    assert_names(message, "features=features")


@pytest.mark.parametrize("shape", [(2, 5), (6, 2), ()])
def test_a_feature_of_another_width(shape):
    message = message_of(update, make(), {**FEATURES, "dense_0": jnp.ones(shape)})
    assert_names(message, "'dense_0'", shape, "6 units")


@pytest.mark.parametrize("shape", [(7, 2), (7, 3, 3, 2), (7, 4, 4, 2)])
def test_a_feature_with_another_number_of_positions(shape):
    params = {"conv": jnp.ones((3, 3, 1, 2)), "dense": jnp.ones((8, 3))}
    tx = make((cbp_jax.UnitGroup("conv", "conv", outgoing="dense"),))
    message = message_of(
        lambda: tx.update(
            params, tx.init(params), params, features={"conv": jnp.ones(shape)}
        )
    )
    assert_names(message, "'conv'", shape, "4 positions of 2 units", "after pooling")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"replacement_rate": -0.1}, ("replacement_rate", "[0, 1]", -0.1)),
        ({"replacement_rate": 1.5}, ("replacement_rate", "[0, 1]", 1.5)),
        ({"replacement_rate": float("nan")}, ("replacement_rate", "nan")),
        ({"decay_rate": 1.0}, ("decay_rate", "[0, 1)", 1.0)),
        ({"decay_rate": -0.5}, ("decay_rate", "[0, 1)", -0.5)),
        ({"maturity_threshold": -1}, ("maturity_threshold", "[0, inf]", -1)),
        ({"max_per_step": 0}, ("max_per_step", "at least 1", 0)),
        ({"budget": "poisson"}, ("budget", ["accumulate", "bernoulli"], "'poisson'")),
        ({"count": "mature"}, ("count", ["eligible", "all"], "'mature'")),
        ({"moments": "one"}, ("moments", ["reset", "keep"], "'one'")),
    ],
)
def test_an_option_out_of_range_or_unknown(options, parts):
    assert_names(message_of(make, **options), *parts)


def test_a_groups_own_rate_out_of_range():
    message = message_of(make, (FIRST, SECOND._replace(replacement_rate=2.0)))
    assert_names(message, "'dense_1'", "replacement_rate", "[0, 1]", 2.0)


@pytest.mark.parametrize("units", [tiny.UNITS, (SECOND, FIRST)])
def test_a_traced_rate_needs_a_bound(units):
    message = message_of(
        jax.eval_shape,
        lambda rate: make(units, replacement_rate=rate).init(PARAMS),
        0.1,
    )
    assert_names(message, repr(units[0].name), "traced", "max_per_step", "ceil")


def test_a_traced_rate_of_one_group_needs_a_bound():
    def init(rate):
        return make((FIRST, SECOND._replace(replacement_rate=rate))).init(PARAMS)

    assert_names(message_of(jax.eval_shape, init, 0.1), "'dense_1'", "max_per_step")


def test_transfer_mean_needs_the_consumers_biases():
    units = (FIRST, SECOND._replace(outgoing_bias=None))
    message = message_of(make(units, transfer_mean=True).init, PARAMS)
    assert_names(message, "transfer_mean", "'dense_1'", "outgoing_bias")


def test_as_many_consumer_biases_as_consumers():
    units = (FIRST._replace(outgoing_bias=("dense_1/bias", "head/bias")),)
    message = message_of(make(units).init, PARAMS)
    assert_names(message, "'dense_0'", "1 outgoing leaves", "2 of outgoing_bias")
    message = message_of(
        make((FIRST._replace(outgoing_bias="head/bias"),)).init, PARAMS
    )
    assert_names(message, "'dense_0'", "outgoing_bias", "'head/bias'", (3,), "5")


def test_a_base_state_that_cannot_be_mapped_names_the_way_out():
    def init(params):
        if not isinstance(params, dict):
            raise TypeError("params must be a dict")
        return jax.tree.map(jnp.zeros_like, params)

    base = optax.GradientTransformation(
        init, lambda updates, state, _: (updates, state)
    )
    message = message_of(make(base=base).init, PARAMS)
    assert_names(message, "base optimizer", "replaced units", 'moments="keep"')
    state = make(base=base, moments="keep").init(PARAMS)
    assert jax.tree.structure(state.base_state) == jax.tree.structure(PARAMS)


def total(measured):
    return jnp.mean(measured.activation)


@pytest.mark.parametrize(
    ("utility_fn", "found"),
    [
        (total, "shape ()"),
        (lambda m: m.outgoing_magnitude, "shape (1, 6)"),
        (lambda m: m.activation, "shape (2, 1, 6)"),
        (lambda m: m.incoming_magnitude.astype(complex), "dtype complex64"),
        (lambda m: None, "returned None"),
    ],
    ids=["scalar", "positions", "batch", "complex", "none"],
)
def test_a_utility_is_one_real_number_a_unit(utility_fn, found):
    name = utility_fn.__qualname__
    message = message_of(update, make(utility_fn=utility_fn))
    assert_names(message, name, "'dense_0'", found, "(6,)", "one number for each unit")


def choose(**fields):
    def rule_update(state, measured):
        choice = cbp_jax.choose_where(measured.age > 1)
        return state, choice._replace(**fields)

    rule = cbp_jax.Rule(age_init, rule_update)
    return cbp_jax.reset_by_rule(optax.sgd(0.1), tiny.UNITS, rule, key=tiny.KEY)


def age_init(num_units, dtype):
    del dtype
    return Ages(jnp.zeros(num_units, jnp.int32))


class Ages(NamedTuple):
    age: jax.Array


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"score": jnp.float32(1)}, ("score", "shape ()", "(6,)")),
        ({"score": jnp.ones((1, 6))}, ("score", "shape (1, 6)", "(6,)")),
        ({"score": jnp.arange(6)}, ("score", "dtype int32", "floating")),
        ({"number": jnp.ones(6, jnp.int32)}, ("number", "shape (6,)", "()")),
        ({"number": jnp.float32(1.5)}, ("number", "dtype float32", "integer")),
    ],
)
def test_a_choice_of_another_shape_or_dtype(fields, parts):
    message = message_of(update, choose(**fields))
    assert_names(message, "rule of unit group 'dense_0'", *parts)


def test_an_unknown_activation_lists_the_choices():
    message = message_of(cbp_jax.networks.activation_function, "rleu")
    assert_names(message, "'rleu'", "'relu'", "'tanh'", "'linear'")
    message = message_of(cbp_jax.initializers.kaiming_uniform, "rleu")
    assert_names(message, "'rleu'", "'relu'", "'tanh'", "'linear'")
    network = cbp_jax.networks.MLP((3,), 2, "rleu")
    message = message_of(network.init, tiny.KEY, jnp.ones((1, 2)))
    assert_names(message, "'rleu'", "'relu'")

"""Gradients of units, as rules and utilities see them: means over a unit's weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax import utility


class Seen(NamedTuple):
    age: jax.Array
    seen: Any


def seeing(*needs):
    """A rule that resets nothing, and keeps the gradients that it is shown."""

    def init(num_units, dtype):
        del dtype
        return Seen(jnp.zeros(num_units, jnp.int32), {})

    def update(state, measured):
        shown = {
            "incoming": measured.incoming_gradient,
            "activation": measured.activation_gradient,
        }
        nobody = cbp_jax.choose_where(jnp.zeros(state.age.shape, bool))
        return state._replace(seen=shown), nobody

    return cbp_jax.Rule(init, update, needs=needs)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def see(group, grads, features, *needs, base=None, **extra_args):
    """What the rule of a group is shown; the params are all 1."""
    group = group._replace(frozen=True)  # What is shown need not fit a state.
    params = jax.tree.map(jnp.ones_like, grads)
    base = optax.sgd(0.1) if base is None else base
    tx = cbp_jax.reset_by_rule(base, (group,), seeing(*needs), key=tiny.FAST_KEY)
    _, state = jax.jit(tx.update)(
        grads, tx.init(params), params, features=features, **extra_args
    )
    return state.units[group.name].seen


WEIGHTS = "incoming_gradient"
ACTIVATIONS = "activation_gradient"


@pytest.mark.parametrize("layout", ["io", "oi"])
def test_of_a_convolution_that_a_dense_layer_reads(layout):
    """All weights of a channel; derivatives by position, as the dense layer reads."""
    conv, slopes = draw(3, 2, 2, 4), draw(5, 2, 3, 4, seed=1)
    grads = {"conv": conv, "dense": draw(24, 2)}
    if layout == "oi":
        grads = {"conv": conv.transpose(3, 2, 0, 1), "dense": grads["dense"].T}
    seen = see(
        cbp_jax.UnitGroup("conv", "conv", outgoing="dense", layout=layout),
        grads,
        {"conv": jnp.ones((5, 2, 3, 4))},
        *(WEIGHTS, ACTIVATIONS),
        feature_gradients={"conv": slopes},
    )
    wanted = np.abs(conv).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(seen["incoming"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(seen["activation"], slopes.reshape(5, 6, 4))


def test_of_several_incoming_kernels_and_consumers():
    """The mean over all weights: large kernels count more. Consumers do not."""
    grads = {"wide": draw(7, 4), "narrow": draw(2, 4), "one": draw(4, 3)}
    grads["two"] = draw(4, 5)
    seen = see(
        cbp_jax.UnitGroup("sum", ("wide", "narrow"), outgoing=("one", "two")),
        grads,
        {"sum": jnp.ones((2, 4))},
        WEIGHTS,
    )
    both = np.concatenate([grads["wide"], grads["narrow"]])
    np.testing.assert_allclose(seen["incoming"], np.abs(both).mean(axis=0), rtol=1e-6)
    assert seen["activation"] is None


def test_of_stacked_layers():
    grads = {"up": draw(3, 4, 6), "down": draw(3, 6, 2)}
    slopes = draw(3, 5, 6)
    seen = see(
        cbp_jax.UnitGroup("mlp", "up", outgoing="down", stack_axes=1),
        grads,
        {"mlp": jnp.ones((3, 5, 6))},
        *(WEIGHTS, ACTIVATIONS),
        feature_gradients={"mlp": slopes},
    )
    np.testing.assert_allclose(
        seen["incoming"], np.abs(grads["up"]).mean(axis=1), rtol=1e-6
    )
    np.testing.assert_array_equal(seen["activation"], slopes[:, :, None])


DENSE = cbp_jax.UnitGroup("dense", "in", outgoing="out")
FROZEN = DENSE._replace(frozen=True)
GRADS = {"in": draw(4, 3), "out": draw(3, 2)}
FEATURES = {"dense": jnp.ones((2, 3))}


def test_the_gradient_is_the_one_before_the_base_and_after_what_comes_first():
    """A penalty in a chain before the resets is part of it; one in the base is not."""
    mean = np.abs(GRADS["in"]).mean(axis=0)
    penalty = optax.add_decayed_weights(100.0)  # All params are 1.
    base = optax.chain(penalty, optax.scale(-0.1))
    seen = see(DENSE, GRADS, FEATURES, WEIGHTS, base=base)
    np.testing.assert_allclose(seen["incoming"], mean, rtol=1e-6)

    rule = seeing(WEIGHTS)
    tx = optax.chain(
        penalty, cbp_jax.reset_by_rule(base, (FROZEN,), rule, key=tiny.FAST_KEY)
    )
    params = jax.tree.map(jnp.ones_like, GRADS)
    _, (_, state) = jax.jit(tx.update)(
        GRADS, tx.init(params), params, features=FEATURES
    )
    np.testing.assert_allclose(
        state.units["dense"].seen["incoming"],
        np.abs(GRADS["in"] + 100).mean(axis=0),
        rtol=1e-6,
    )


def test_what_no_rule_needs_is_not_measured():
    seen = see(DENSE, GRADS, FEATURES, feature_gradients=FEATURES)
    assert seen == {"incoming": None, "activation": None}


def test_a_base_gets_the_gradients_of_features_if_it_takes_them():
    """And the names of features need no collection."""
    given = []

    def update(updates, state, params, *, feature_gradients=None):
        del params
        given.append(feature_gradients)
        return updates, state

    base = optax.GradientTransformationExtraArgs(lambda _: (), update)
    slopes = {"dense": draw(2, 3)}
    group = FROZEN._replace(name="params/dense")
    needed, needless = (
        see(group, GRADS, FEATURES, *needs, base=base, feature_gradients=slopes)
        for needs in ((ACTIVATIONS,), ())
    )
    np.testing.assert_array_equal(needed["activation"], slopes["dense"][:, None])
    assert needless["activation"] is None
    assert [slopes.keys() for slopes in given[-2:]] == 2 * [{"dense"}]


@pytest.mark.parametrize(
    ("needs", "extra_args", "message"),
    [
        (
            ("gradient",),
            {},
            r"needs must be one of \['incoming_gradient', .*'gradient'",
        ),
        (
            (ACTIVATIONS,),
            {},
            r"missing: \['dense'\], given: \[\].*Pass feature_gradien",
        ),
        (
            (ACTIVATIONS,),
            {"feature_gradients": {"dense": jnp.ones((2, 5))}},
            r"Feature gradient 'dense' has shape \(2, 5\); its last axis must be the 3",
        ),
    ],
)
def test_errors_say_what_to_write(needs, extra_args, message):
    with pytest.raises(ValueError, match=message):
        see(DENSE, GRADS, FEATURES, *needs, **extra_args)


def measured():
    activation, slopes = draw(5, 2, 3), draw(5, 2, 3, seed=1)
    return cbp_jax.Measurements(
        activation=jnp.asarray(activation),
        incoming_magnitude=jnp.ones(3),
        outgoing_magnitude=jnp.ones((2, 3)),
        age=jnp.ones(3, jnp.int32),
        count=jnp.zeros((), jnp.int32),
        key=tiny.FAST_KEY,
        incoming_gradient=jnp.arange(3.0),
        activation_gradient=jnp.asarray(slopes),
    )


UTILITIES = {
    "gradient": lambda m: np.arange(3.0),
    "activation_gradient": lambda m: np.abs(m.activation_gradient).mean(axis=(0, 1)),
    "activation_times_gradient": lambda m: np.abs(
        np.asarray(m.activation) * np.asarray(m.activation_gradient)
    ).mean(axis=(0, 1)),
}


@pytest.mark.parametrize("name", UTILITIES)
def test_utilities(name):
    function = getattr(utility, name)
    given = measured()
    np.testing.assert_allclose(function(given), UTILITIES[name](given), rtol=1e-6)
    opposite = utility.inverted(function)
    np.testing.assert_allclose(opposite(given), -UTILITIES[name](given), rtol=1e-6)
    assert opposite.needs == function.needs
    without = given._replace(incoming_gradient=None, activation_gradient=None)
    with pytest.raises(ValueError, match=f"Add '{function.needs[0]}' to `needs`"):
        function(without)


def test_continual_backprop_replaces_the_unit_of_the_smallest_gradient():
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.1),
        (DENSE,),
        replacement_rate=1 / 3,
        maturity_threshold=0,
        utility_fn=utility.gradient,
        key=tiny.FAST_KEY,
    )
    params = jax.tree.map(jnp.ones_like, GRADS)
    for unit in range(3):
        weak = {"in": GRADS["in"] * np.where(np.arange(3) == unit, 0.01, 1)}
        grads = GRADS | {"in": jnp.asarray(weak["in"], jnp.float32)}
        _, state = jax.jit(tx.update)(grads, tx.init(params), params, features=FEATURES)
        assert state.replaced["dense"].tolist() == [unit, 3, 3]

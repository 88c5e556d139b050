"""Replaced units behind a normalization: its params and its statistics are newborn.

Shapes: T steps, N units.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.layers import NORMALIZATIONS, value_and_grad_with_state
from cbp_jax.networks import MLP, ConvNet

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 6, 6, 2)), jnp.float32)
FORWARD_DECAY = {"online": 0.9, "batch": 0.99}
OPTIONS = {
    # Layer scaling would send gradients also to units that nothing reads.
    "online": {"forward_decay": 0.9, "guard": "none"},
    "batch": {"momentum": 0.99},
}


def group(name="a", statistics="stats/a"):
    return cbp_jax.UnitGroup(name, incoming="w", outgoing="v", statistics=statistics)


def test_the_leaves_that_a_group_names_are_newborn_where_it_lost_units():
    statistics = {
        "stats": {
            "a": {
                "mean": jnp.array([1.0, 2.0, 3.0]),
                "var": jnp.array([4.0, 5.0, 6.0]),
            },
            "ab": {"mean": jnp.array([7.0, 8.0, 9.0])},
        },
        "sums": [jnp.arange(6.0).reshape(2, 3) + 10],
    }
    units = [
        group("a", ("stats/a", "sums")),
        group("b", "stats/ab/mean"),
        group("c", "nowhere"),
        group("d", None),
    ]
    replaced = {
        "a": jnp.array([2, 0], jnp.int32),
        "b": jnp.array([3, 3], jnp.int32),
        "d": jnp.array([0], jnp.int32),
    }
    new = cbp_jax.reset_statistics(statistics, units, replaced)
    tiny.assert_equal(
        new,
        {
            "stats": {
                "a": {"mean": np.array([0, 2, 0]), "var": np.array([1, 5, 1])},
                "ab": {"mean": np.array([7, 8, 9])},
            },
            "sums": [np.array([[0, 11, 0], [0, 14, 0]])],
        },
    )
    newborn = jax.tree.map(lambda leaf: -leaf, statistics)
    new = cbp_jax.reset_statistics(statistics, units, replaced, newborn)
    np.testing.assert_array_equal(new["stats"]["a"]["var"], [-4, 5, -6])
    np.testing.assert_array_equal(new["sums"][0], [[-10, 11, -12], [-13, 14, -15]])


def test_a_network_without_state_has_nothing_to_reset():
    units = MLP((5, 3), 2).units()
    assert cbp_jax.reset_statistics({}, units, {"dense_0": jnp.array([1])}) == {}


@pytest.mark.parametrize(
    "statistics, paths, message",
    [
        ({"a": np.zeros(3)}, "b", r"'a'.* 'b' is not in .* leaves are \['a'\]"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, ("a", "b"), r"shapes \{'a': \(3,\)"),
        ({"a": np.float32(0)}, "a", r"units as their last axis, got shapes"),
    ],
)
def test_errors(statistics, paths, message):
    with pytest.raises(ValueError, match=message):
        cbp_jax.reset_statistics(
            statistics, [group("a", paths)], {"a": jnp.array([0], jnp.int32)}
        )


def randomize(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), tree
    )


def replace_once(network, inputs):
    """Returns variables before and after an update that only replaces, and who went."""
    before = randomize(jax.eval_shape(network.init, tiny.FAST_KEY, inputs))
    units = network.units()
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        units,
        replacement_rate=0.4,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )

    @jax.jit
    def update(variables):
        params = variables["params"]
        state = {name: variables[name] for name in variables if name != "params"}
        _, features = network.apply(variables, inputs)
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, tx_state = tx.update(grads, tx.init(params), params, features=features)
        params = optax.apply_updates(params, updates)
        state = cbp_jax.reset_statistics(state, units, tx_state.replaced)
        return {"params": params, **state}, tx_state.replaced

    after, replaced = update(before)
    return before, after, jax.device_get(replaced)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_reborn_unit_has_scale_1_shift_0_and_newborn_statistics(kind):
    before, after, replaced = replace_once(MLP((5, 4), 2, "tanh", kind), INPUTS)
    check_newborn(before, after, replaced, {"dense_0": 5, "dense_1": 4})


@pytest.mark.parametrize("kind", ["batch", "online"])
def test_so_has_a_reborn_channel(kind):
    network = ConvNet(2, "tanh", (5,), (3,), (4,), normalization=kind)
    before, after, replaced = replace_once(network, IMAGES)
    check_newborn(before, after, replaced, {"conv_0": 5, "dense_0": 4})


def check_newborn(before, after, replaced, widths):
    before, after = tiny.by_path(before), tiny.by_path(after)
    for index, (name, width) in enumerate(widths.items()):
        reborn = tiny.mask_of(replaced[name], width)
        assert 0 < reborn.sum() < width
        leaves = {path for path in before if f"/norm_{index}/" in path}
        assert leaves
        for path in leaves:
            wanted = float(path.endswith(("/scale", "/var")))
            np.testing.assert_array_equal(after[path][reborn], wanted, err_msg=path)
            np.testing.assert_array_equal(
                after[path][~reborn], before[path][~reborn], err_msg=path
            )
        kernel = f"params/{name}/kernel"
        assert (after[kernel][..., reborn] != before[kernel][..., reborn]).all()


@pytest.mark.parametrize("kind", FORWARD_DECAY)
def test_statistics_in_a_training_loop_are_as_old_as_their_units(kind):
    """On a constant batch the estimates have a closed form in a unit's age."""
    num_steps, width = 12, 8
    inputs = INPUTS if kind == "batch" else INPUTS[:1]
    network = MLP((width,), 2, "tanh", kind, OPTIONS[kind])
    units = network.units()
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        units,
        replacement_rate=0.1,
        maturity_threshold=1,
        utility_fn=cbp_jax.utility.random,
        initializer=network.initializer(),
        key=tiny.FAST_KEY,
    )

    def loss_fn(params, state):
        (outputs, features), state = network.apply(
            {"params": params, **state}, inputs, train=True, mutable=list(state)
        )
        return jnp.sum(outputs**2), (state, features)

    def train_step(carry, _):
        params, state, tx_state = carry
        (_, features), grads, state = value_and_grad_with_state(loss_fn)(params, state)
        updates, tx_state = tx.update(grads, tx_state, params, features=features)
        params = optax.apply_updates(params, updates)
        state = cbp_jax.reset_statistics(state, units, tx_state.replaced)
        return (params, state, tx_state), tx_state.replaced["dense_0"]

    @jax.jit
    def train():
        state = network.init(tiny.FAST_KEY, inputs)
        params = state.pop("params")
        return jax.lax.scan(
            train_step, (params, state, tx.init(params)), length=num_steps
        )

    (params, state, tx_state), replaced = jax.device_get(train())
    age = tx_state.units["dense_0"].age
    assert len(set(age)) > 3 and age.max() == num_steps and age.min() < 3
    hidden = np.asarray(inputs) @ params["dense_0"]["kernel"]
    weight = FORWARD_DECAY[kind] ** age.astype(np.float64)
    mean, var = hidden.mean(0), hidden.var(0)
    # Of one constant number the online estimate of the variance sees the change of the
    # mean, from its 0 at birth.
    spread = mean**2 * weight * (1 - weight) if kind == "online" else (1 - weight) * var
    statistics = state["batch_stats"]["norm_0"]
    np.testing.assert_allclose(statistics["mean"], mean * (1 - weight), rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], weight + spread, rtol=1e-4)
    if kind == "online":
        # With step size 0 nothing flows back through outgoing weights of 0.
        reborn = tiny.mask_of(replaced.ravel(), width)
        for sums in state["backward_stats"]["norm_0"].values():
            assert np.all((sums != 0) == ~reborn)

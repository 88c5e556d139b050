"""Training loops of other libraries: each makes the updates of a plain optax loop."""

import functools

from flax import linen as nn
from flax import nnx
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.training import TrainState

NUM_STEPS = 12
UNITS = cbp_jax.sequential_units(("hidden", "head"))
RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(NUM_STEPS, 5, 4)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(NUM_STEPS, 5, 3)), jnp.float32)
PARAMS = {
    "hidden": {
        "kernel": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32),
        "bias": jnp.zeros(6),
    },
    "head": {
        "kernel": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
        "bias": jnp.zeros(3),
    },
}


def make(units=UNITS):
    return cbp_jax.continual_backprop(
        optax.sgd(0.05, momentum=0.9),
        units,
        replacement_rate=0.1,
        maturity_threshold=2,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(6, name="hidden")(x))
        return nn.Dense(3, name="head")(hidden), {"hidden": hidden}


def loss_fn(apply, inputs, targets):
    outputs, features = apply(inputs)
    return jnp.mean((outputs - targets) ** 2), features


def grads_of(params, inputs, targets):
    """Gradients and features."""

    def loss(params):
        apply = functools.partial(Network().apply, {"params": params})
        return loss_fn(apply, inputs, targets)

    return jax.grad(loss, has_aux=True)(params)


@functools.cache
def plain_loop(every=1):
    """Params and state after each gradient; `every` of them make an update."""
    tx = make() if every == 1 else optax.MultiSteps(make(), every)

    def step(carry, batch):
        params, state = carry
        grads, features = grads_of(params, *batch)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), None

    start = PARAMS, tx.init(PARAMS)
    return jax.jit(lambda: jax.lax.scan(step, start, (INPUTS, TARGETS))[0])()


def unit_state(state):
    return state.units, state.num_replaced


def run(state, **options):
    """Trains with flax's state; the optimizer stays the same object, so jit does."""

    @jax.jit
    def step(state, batch):
        grads, features = grads_of(state.params, *batch)
        return state.apply_gradients(grads=grads, features=features, **options)

    for batch in zip(INPUTS, TARGETS, strict=True):
        state = step(state, batch)
    assert step._cache_size() <= 2  # The step is a Python integer at first.
    return state


def create(tx, kind=TrainState, **fields):
    return kind.create(apply_fn=Network().apply, params=PARAMS, tx=tx, **fields)


def test_the_train_state_passes_features_on():
    params, wanted = plain_loop()
    assert wanted.num_replaced["hidden"] > 2
    state = run(create(make()))
    tiny.assert_close(state.params, params)
    tiny.assert_close(unit_state(state.opt_state), unit_state(wanted))
    assert state.step == NUM_STEPS


def test_multi_steps_in_a_train_state():
    params, wanted = plain_loop(every=2)
    state = run(create(optax.MultiSteps(make(), 2)))
    tiny.assert_close(state.params, params)
    actual = unit_state(state.opt_state.inner_opt_state)
    tiny.assert_close(actual, unit_state(wanted.inner_opt_state))
    assert wanted.inner_opt_state.num_replaced["hidden"] > 0


def test_a_subclass_keeps_its_fields_and_a_plain_optimizer_its_updates():
    class WithStatistics(TrainState):
        batch_stats: jax.Array

    tx = optax.sgd(0.05, momentum=0.9)
    state = create(tx, WithStatistics, batch_stats=jnp.zeros(2))
    state = run(state, batch_stats=jnp.ones(2))
    theirs = create(tx, train_state.TrainState)
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for batch in zip(INPUTS, TARGETS, strict=True):
        theirs = step(theirs, grads_of(theirs.params, *batch)[0])
    tiny.assert_close(state.params, theirs.params)
    np.testing.assert_array_equal(state.batch_stats, 1)
    assert isinstance(state, WithStatistics) and state.tx is tx


def test_other_arguments_reach_the_optimizer():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    tx = cbp_jax.continual_backprop(
        optax.chain(optax.sgd(0.1), plateau), UNITS, key=tiny.FAST_KEY
    )
    state = create(tx)
    grads, features = grads_of(PARAMS, INPUTS[0], TARGETS[0])
    options = {"features": features, "extra_args": {"value": 1.0}}
    step = jax.jit(lambda state: state.apply_gradients(grads=grads, **options))
    state = step(step(state))  # The second loss is not below the first.
    assert state.opt_state.base_state[-1].scale == 0.5


@pytest.mark.parametrize("kind", [TrainState, train_state.TrainState])
def test_without_features_the_error_names_them(kind):
    with pytest.raises(
        ValueError, match="every unit group; missing: .*cbp_jax.training"
    ):
        create(make(), kind).apply_gradients(grads=PARAMS)


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.hidden(x))
        return self.head(hidden), {"hidden": hidden}


def test_the_optimizer_of_nnx():
    model = NnxNetwork(nnx.Rngs(0))
    nnx.update(model, PARAMS)
    optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs, targets):
        loss = functools.partial(loss_fn, inputs=inputs, targets=targets)
        grads, features = nnx.grad(loss, has_aux=True)(model)
        optimizer.update(model, grads, features=features)

    for batch in zip(INPUTS, TARGETS, strict=True):
        step(model, optimizer, *batch)
    params, wanted = plain_loop()
    tiny.assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    state = nnx.as_pure(optimizer.opt_state)
    tiny.assert_close(unit_state(state), unit_state(wanted))


def train(apply, params, units):
    """The plain loop, for params of other libraries."""
    tx = make(units)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return loss_fn(functools.partial(apply, params), *batch)

        grads, features = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for batch in zip(INPUTS, TARGETS, strict=True):
        params, state = step(params, state, batch)
    return params, state


def test_a_module_of_equinox():
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(4, 3, 6, 1, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)
    wanted = [PARAMS["hidden"], PARAMS["head"]]
    # Kernels are [out, in].
    leaves = [leaf for one in wanted for leaf in (one["kernel"].T, one["bias"])]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    units = cbp_jax.sequential_units(
        ("layers/0", "layers/1"), kernel="weight", layout="oi"
    )

    def apply(params, inputs):
        return jax.vmap(equinox.combine(params, static))(inputs)

    params, state = train(cbp_jax.with_features(apply, units), params, units)
    trained, wanted = plain_loop()
    tiny.assert_close(params.layers[0].weight.T, trained["hidden"]["kernel"])
    tiny.assert_close(params.layers[1].weight.T, trained["head"]["kernel"])
    tiny.assert_close(state.units["layers/0"], wanted.units["hidden"])


def test_a_network_of_haiku():
    haiku = pytest.importorskip("haiku")

    @haiku.without_apply_rng
    @haiku.transform
    def network(inputs):
        hidden = jax.nn.relu(haiku.Linear(6, name="hidden")(inputs))
        return haiku.Linear(3, name="head")(hidden), {"hidden": hidden}

    params = {
        name: {"w": layer["kernel"], "b": layer["bias"]}
        for name, layer in PARAMS.items()
    }
    units = cbp_jax.sequential_units(("hidden", "head"), kernel="w", bias="b")
    params, state = train(network.apply, params, units)
    trained, wanted = plain_loop()
    for name, layer in trained.items():
        tiny.assert_close(params[name]["w"], layer["kernel"])
        tiny.assert_close(params[name]["b"], layer["bias"])
    tiny.assert_close(unit_state(state), unit_state(wanted))

"""What a researcher switches on to find a fault of his own finds none of the library's.

All runs without `jax.jit`, where JAX looks at the result of every single operation.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import CASES, GRADS, NUM_STEPS, PARAMS, make
import pytest
import tiny

import cbp_jax
from cbp_jax import layers, metrics, networks


@pytest.fixture(autouse=True)
def _all_flags():
    with contextlib.ExitStack() as stack:
        for flag in (
            jax.debug_nans(True),
            jax.debug_infs(True),
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("strict"),
        ):
            stack.enter_context(flag)
        yield


@pytest.mark.parametrize("fault", [jnp.log, lambda x: x / x])
def test_a_fault_of_ones_own_is_found(fault):
    with pytest.raises(FloatingPointError):
        fault(jnp.zeros(3))


@pytest.mark.parametrize("name", CASES)
def test_every_optimizer_updates(name):
    numbers = {
        option: jnp.asarray(value, type(value))
        for option, value in CASES[name].numbers.items()
    }
    tx, params = make(name, numbers), PARAMS
    state = tx.init(params)
    for index in range(NUM_STEPS):
        grads = tiny.at(GRADS, index)
        updates, state = tx.update(grads, state, params, grad=grads)
        params = optax.apply_updates(params, updates)


def replacement(base, units, **options):
    options = {"replacement_rate": 0.3, "maturity_threshold": 0} | options
    return cbp_jax.continual_backprop(base, units, **options)


RULES = {
    "continual_backprop": (replacement, {}),
    "continual_backprop_traced": (
        replacement,
        {
            "replacement_rate": jnp.float32(0.3),
            "decay_rate": jnp.float32(0.0),
            "maturity_threshold": jnp.float32(jnp.inf),
            "max_per_step": 2,
        },
    ),
    "random": (
        replacement,
        {"utility_fn": cbp_jax.utility.random, "budget": "bernoulli", "count": "all"},
    ),
    "by_input": (
        replacement,
        {
            "utility_fn": cbp_jax.utility.inverted(
                cbp_jax.utility.activation_over_input
            ),
            "decay_rate": 0.0,
        },
    ),
    "redo": (
        cbp_jax.redo,
        {"threshold": jnp.float32(0.9), "reset_every": jnp.float32(2)},
    ),
    "redo_over_interval": (cbp_jax.redo, {"reset_every": 2, "over_interval": True}),
    "self_normalized_resets": (
        cbp_jax.self_normalized_resets,
        {
            "rejection_rate": jnp.float32(0.5),
            "first_threshold": jnp.float32(1),
            "lowest_threshold": jnp.float32(1),
            "refresh_every": 1,
        },
    ),
}
KERNELS = {
    "dense": ((4, 6), (6, 3), (6,), {}),
    # A map of 4 positions is flattened; units of a stack of 2 layers.
    "flattened": ((2, 2, 2, 6), (24, 3), (2, 2, 6), {}),
    "stack": ((2, 4, 6), (2, 6, 3), (6,), {"stack_axes": 1}),
}


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_resets(name, kind):
    if kind != "dense" and name not in ("continual_backprop", "redo"):
        pytest.skip("all rules measure alike")
    incoming, outgoing, feature, options = KERNELS[kind]
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stack = outgoing[:-2]
    params = {
        "in": {"kernel": draw(*incoming), "bias": jnp.zeros((*stack, 6))},
        "out": {"kernel": draw(*outgoing), "bias": jnp.zeros((*stack, 3))},
    }
    group = cbp_jax.UnitGroup("in", "in/kernel", "in/bias", "out/kernel", **options)
    rule, settings = RULES[name]
    tx = rule(optax.sgd(0.1, momentum=0.9), (group,), key=tiny.KEY, **settings)
    state = tx.init(params)
    # A unit that is silent all the time.
    features = {"in": draw(*stack, 5, *feature).at[..., 2].set(0)}
    for _ in range(3):
        updates, state = tx.update(params, state, params, features=features)
        params = optax.apply_updates(params, updates)
    is_off = name == "continual_backprop_traced"
    assert (state.num_replaced["in"] > 0).all() != is_off
    cbp_jax.reset_units(params, (group,), state.replaced)


@pytest.mark.parametrize("features", [jnp.zeros((7, 4)), jnp.eye(4), jnp.ones((3, 4))])
def test_every_measure_of_features(features):
    for measure in (metrics.dead_units, metrics.dormant_units):
        measure(features)
    metrics.tau_dormant_units(features)
    metrics.saturated_units(features, -1, 1)
    for method in metrics.METHODS:
        for rank in (
            *(metrics.effective_rank, metrics.stable_rank),
            *(metrics.approximate_rank, metrics.numerical_rank),
        ):
            rank(features, method=method)


@pytest.mark.parametrize("normalization", ["none", *layers.NORMALIZATIONS])
@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_every_layer_learns(normalization, activation):
    """Of images, too; pairs of outputs are of the multilayer perceptron alone."""
    network = networks.MLP((3,), 2, activation, normalization)
    inputs = jnp.linspace(-1, 1, 20).reshape(5, 4)
    if activation == "relu":
        network = networks.ConvNet(
            2, "relu", (2,), (3,), (3,), normalization=normalization
        )
        inputs = jnp.linspace(-1, 1, 2 * 7 * 6).reshape(2, 7, 6, 1)
    state = network.init(tiny.KEY, inputs)
    params = state.pop("params")

    def loss_of(params, state):
        (outputs, features), state = network.apply(
            {"params": params, **state},
            inputs,
            train=True,
            mutable=list(state),
            dropout_rate=jnp.float32(0.2),
            dropout_key=tiny.KEY,
        )
        return jnp.mean(outputs**2), (state, features)

    step = layers.value_and_grad_with_state(loss_of)
    _, _, state = step(params, state)
    network.apply({"params": params, **state}, inputs)

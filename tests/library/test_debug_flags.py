"""What a researcher switches on to find a fault of his own finds none of the library's.

Promotions and leaks show when a function is traced. NaN and infinities are looked for
as they are without `jax.jit`, where JAX checks the result of every single operation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import CASES, GRADS, PARAMS, make
import pytest
import tiny

import cbp_jax
from cbp_jax import layers, metrics, networks
from cbp_jax._numbers import average_weight

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def no_fault():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


@pytest.mark.parametrize("fault", [jnp.log, lambda x: x / x])
def test_a_fault_of_ones_own_is_found(fault, no_fault):
    with pytest.raises(FloatingPointError):
        fault(jnp.zeros(3))


def numbers_of(name):
    """As arrays, as lanes have them."""
    numbers = CASES[name].numbers.items()
    return {key: jnp.asarray(value, type(value)) for key, value in numbers}


@pytest.mark.parametrize("name", CASES)
def test_every_optimizer_updates(name, no_fault):
    """The second update is an event."""
    tx, params = make(name, numbers_of(name)), PARAMS
    state = tx.init(params)
    for index in range(2):
        grads = tiny.at(GRADS, index)
        updates, state = tx.update(grads, state, params, grad=grads)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", CASES)
def test_no_optimizer_leaks(name):
    def step(grads, params, numbers):
        tx = make(name, numbers)
        return tx.update(grads, tx.init(params), params, grad=grads)

    with jax.checking_leaks():
        jax.eval_shape(step, PARAMS, PARAMS, numbers_of(name))


def test_no_decay_weighs_each_average_fully(no_fault):
    ages = jnp.arange(1, 4)
    np.testing.assert_array_equal(average_weight(ages, 0.0, jnp.float32), np.ones(3))
    np.testing.assert_allclose(
        average_weight(ages, jnp.float32(0.5), jnp.float32), [0.5, 0.75, 0.875]
    )


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
    "regrama": (
        cbp_jax.regrama,
        {"threshold": jnp.float32(0.9), "reset_every": jnp.float32(2)},
    ),
    "cpr": (
        cbp_jax.cpr,
        {
            "replacement_rate": jnp.float32(1.0),
            "sharpness": jnp.float32(1e30),
            "reset_every": 2,
        },
    ),
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
EAGER = ("redo", "self_normalized_resets")
KERNELS = {
    "dense": ((4, 6), (6, 3), (6,), {}),
    # A map of 4 positions is flattened; units of a stack of 2 layers.
    "flattened": ((2, 2, 2, 6), (24, 3), (2, 2, 6), {}),
    "stack": ((2, 4, 6), (2, 6, 3), (6,), {"stack_axes": 1}),
}


def case_of(name, kind):
    """What makes a transformation of one group, the group, params and features."""
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

    def make_tx(**numbers):
        base = optax.sgd(0.1, momentum=0.9)
        return rule(base, (group,), key=tiny.FAST_KEY, **settings | numbers)

    # A unit that is silent all the time.
    features = {"in": draw(*stack, 5, *feature).at[..., 2].set(0)}
    return make_tx, group, params, features


@pytest.mark.parametrize("name", ["continual_backprop", *EAGER])
def test_every_rule_resets(name, no_fault):
    make_tx, _, params, features = case_of(name, "dense")
    tx = make_tx()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params, features=features)
        params = optax.apply_updates(params, updates)
    assert state.num_replaced["in"] > 0


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", RULES)
def test_no_rule_promotes_or_leaks(name, kind):
    make_tx, group, params, features = case_of(name, kind)
    numbers = RULES[name][1].items()
    traced = {key: value for key, value in numbers if isinstance(value, jax.Array)}

    def step(params, features, numbers):
        tx = make_tx(**numbers)
        updates, state = tx.update(params, tx.init(params), params, features=features)
        statistics = {"in": {"mean": params["in"]["bias"][None]}}
        with_statistics = (group._replace(statistics="in"),)
        return (
            updates,
            cbp_jax.reset_units(params, (group,), state.replaced),
            cbp_jax.reset_statistics(statistics, with_statistics, state.replaced),
        )

    with jax.checking_leaks():
        jax.eval_shape(step, params, features, traced)


@pytest.mark.parametrize("features", [jnp.zeros((7, 4)), jnp.ones((3, 4))])
def test_every_measure_of_features(features, no_fault):
    for measure in (metrics.dead_units, metrics.dormant_units):
        measure(features)
    metrics.tau_dormant_units(features)
    metrics.saturated_units(features, -1, 1)
    for measure in (
        *(metrics.gradient_dormant_units, metrics.always_on_units),
        *(metrics.duplicate_units, metrics.spectral_norm, metrics.condition_number),
        metrics.isometry_gap,
    ):
        measure(features)
    for method in metrics.METHODS:
        for rank in (
            *(metrics.effective_rank, metrics.stable_rank),
            *(metrics.approximate_rank, metrics.numerical_rank),
            *(metrics.srank, metrics.rankme, metrics.participation_ratio),
        ):
            rank(features, method=method)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_every_measure_of_a_loss(scale, no_fault):
    """Of a network without any gradient, too."""
    params = {"w": scale * jnp.ones((4, 2)), "b": jnp.zeros(2)}
    inputs, targets = jnp.ones((6, 4)), jnp.zeros((6, 2))

    def apply(params, inputs):
        return inputs @ params["w"] + params["b"][None]

    def loss_fn(params, inputs, targets):
        return jnp.mean((scale * apply(params, inputs) - targets) ** 2)

    probe = loss_fn, params, inputs, targets
    metrics.hessian_rank(*probe, order=20)
    metrics.sharpness(*probe, num_iterations=2)
    metrics.readiness(*probe, batch_size=2)
    kernel = metrics.tangent_kernel(apply, params, inputs)
    metrics.condition_number(kernel)
    metrics.churn(apply(params, inputs), targets)
    metrics.update_plasticity(targets, targets)
    metrics.distance_from_initialization(params, params)
    metrics.forgetting(jnp.eye(3))


@pytest.mark.parametrize(
    ("activation", "normalization"),
    [
        *(("crelu", name) for name in ("none", *layers.NORMALIZATIONS)),
        *(("relu", name) for name in ("batch", "online")),
    ],
)
def test_no_layer_promotes_or_leaks(activation, normalization):
    """Of images, too; pairs of outputs are of the multilayer perceptron alone."""
    network = networks.MLP((3,), 2, activation, normalization)
    inputs = jnp.linspace(-1, 1, 20).reshape(5, 4)
    if activation == "relu":
        network = networks.ConvNet(
            2, "relu", (2,), (3,), (3,), normalization=normalization
        )
        inputs = jnp.linspace(-1, 1, 2 * 7 * 6).reshape(2, 7, 6, 1)
    state = jax.eval_shape(network.init, tiny.KEY, inputs)
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

    with jax.checking_leaks():
        step = layers.value_and_grad_with_state(loss_of)
        _, _, state = jax.eval_shape(step, params, state)
        jax.eval_shape(network.apply, {"params": params, **state}, inputs)

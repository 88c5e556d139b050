"""Measures of a learner against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import one_lane, tiny_digits

from cbp_jax import networks
from experiments import permuted_mnist
from experiments.learning.measures import layer_measures, task_measures

LAYERS = ("dense_0", "dense_1", "head")
IMAGES = jax.random.uniform(jax.random.key(1), (20, 64))
LABELS = jnp.arange(20) % 10


@functools.cache
def measured(method, activation="relu"):
    """A learner of two layers after 30 updates: measures, states, ages."""
    config = tiny_digits(
        method=method,
        hidden_layers=2,
        activation=activation,
        replacement_rate=0.03,
        maturity_threshold=5,
        step_size=0.1,
    )
    learner = permuted_mnist.make_problem(config).learner
    hyperparameters, key = one_lane(config)

    @jax.jit
    def train(key):
        first = learner.init(hyperparameters, key)

        def step(state, index):
            image, label = IMAGES[index][None], LABELS[index][None]
            return learner.step(hyperparameters, state, image, label)[0], None

        state, _ = jax.lax.scan(step, first, jnp.arange(30) % 20)
        before = layer_measures(
            config, learner, hyperparameters, state, IMAGES, LABELS, jnp.int32(0)
        )
        after = task_measures(learner, first, state)
        return first, state, before, after, learner.unit_ages(state)

    return jax.device_get(train(key))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def test_gradient_norm_and_update_are_those_of_the_examples_as_one_batch():
    _, state, measures, _, _ = measured("backprop")
    network = networks.MLP((5, 5), 10)

    def loss(params):
        logits, _ = network.apply({"params": params}, IMAGES)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return losses.mean()

    grads = jax.grad(loss)(state.params)
    norms = np.array([norm(grads[name]) for name in LAYERS])
    sizes = np.array([norm(state.params[name]) for name in LAYERS])
    np.testing.assert_allclose(measures["gradient_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(
        measures["update_to_weight"], 0.1 * norms / sizes, rtol=1e-4
    )


def test_units_of_backprop_are_as_old_as_the_learner_and_never_reset():
    _, _, measures, after, _ = measured("backprop")
    np.testing.assert_array_equal(measures["mean_age"], [30, 30, np.nan])
    np.testing.assert_array_equal(after["units_reset"], [0, 0, np.nan])


@pytest.mark.parametrize("method", ["continual_backprop", "random_replacement"])
def test_ages_and_resets_are_those_of_the_units(method):
    """0.03 x 5 units x 25 steps or a little less; lives add up to 5 units x 30."""
    _, state, measures, after, ages = measured(method)
    expected = [np.mean(age) for age in ages]
    np.testing.assert_allclose(measures["mean_age"], [*expected, np.nan])
    assert (measures["mean_age"][:2] < 30).all()
    assert ((after["units_reset"][:2] >= 2) & (after["units_reset"][:2] <= 4)).all()
    counts = [state.optimizer_state.num_replaced[name] for name in LAYERS[:2]]
    np.testing.assert_array_equal(after["units_reset"][:2], counts)


def test_weight_magnitude_is_the_mean_of_before_and_after():
    first, state, _, after, _ = measured("backprop")
    means = [
        [np.abs(params[name]["kernel"]).mean() for name in LAYERS]
        for params in (first.params, state.params)
    ]
    np.testing.assert_allclose(
        after["weight_magnitude"], np.mean(means, axis=0), rtol=1e-5
    )


def test_only_bounded_activations_saturate():
    measures = measured("backprop")[2]
    assert np.isnan(measures["saturated_units"]).all()
    units = ("dead_units", "tau_dormant_units")
    for name in (*units, "effective_rank", "approximate_rank"):
        assert np.isfinite(measures[name][:2]).all(), name
        assert np.isnan(measures[name][2]), name
    saturated = measured("backprop", activation="tanh")[2]["saturated_units"]
    assert ((saturated[:2] >= 0) & (saturated[:2] <= 1)).all()

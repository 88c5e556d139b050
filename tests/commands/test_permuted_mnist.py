"""The stream of tasks, and what a task measures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import one_lane, stream_key

from cbp_jax import metrics, networks
from configs import pmnist
from experiments import permuted_mnist
from experiments.run.config import complete
from experiments.streams import permuted_images


def draw(config, seed, task, num_pixels=64, num_images=30):
    pixels, order = permuted_images.draw_task(
        config, stream_key(seed), jnp.int32(task), num_pixels, num_images
    )
    return np.asarray(pixels), np.asarray(order)


def test_every_lane_and_task_has_its_own_permutation():
    config = pmnist.get_config("smoke")
    drawn = [draw(config, seed, task)[0] for seed in (0, 1) for task in (0, 1)]
    for pixels in drawn:
        np.testing.assert_array_equal(np.sort(pixels), np.arange(64))
    assert len({pixels.tobytes() for pixels in drawn}) == 4


def test_without_replacement_shows_every_image_once_per_pass():
    config = pmnist.get_config("paper")
    config.examples_per_task = 75
    order = draw(config, 0, 3)[1]
    for start in (0, 30):
        np.testing.assert_array_equal(np.sort(order[start : start + 30]), np.arange(30))
    assert len(np.unique(order[60:])) == 15
    assert not np.array_equal(order[:30], order[30:60])


def test_with_replacement_draws_uniformly():
    config = pmnist.get_config("smoke")
    counts = np.bincount(draw(config, 0, 0)[1], minlength=30)
    assert counts.sum() == 200
    # Chi-squared of 29 degrees of freedom: 99.99 % lie below 65; a shuffle gives 0.5.
    chi_squared = ((counts - 200 / 30) ** 2 / (200 / 30)).sum()
    assert 8 < chi_squared < 65


@pytest.fixture(scope="module")
def frozen_task():
    """Task 5 of a learner with step size 0, and what it should have seen."""
    config = complete(pmnist.get_config("smoke"))
    config.step_size, config.rank_every, config.hidden_layers = 0.0, 5, 2
    config.cases = {"backprop": {"method": "backprop"}}
    problem = permuted_mnist.make_problem(config)
    hyperparameters, key = one_lane(config)
    state = problem.learner.init(hyperparameters, key)
    task = jnp.int32(5)
    new_state, measured = jax.jit(
        lambda state, data: problem.run_task(hyperparameters, state, key, task, data)
    )(state, problem.data)

    pixels, order = draw(config, 0, 5, 64, 1797)
    images = np.asarray(problem.data["images"])[order][:, pixels] / np.float32(16)
    labels = np.asarray(problem.data["labels"])[order]
    network = networks.MLP((10, 10), 10)
    outputs, features = network.apply({"params": state.params}, images)
    return config, state, new_state, measured, outputs, features, labels


def test_online_scores_are_of_the_scaled_permuted_images(frozen_task):
    _, state, new_state, measured, outputs, _, labels = frozen_task
    for before, after in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(new_state.params), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)
    accuracy = (np.argmax(outputs, axis=1) == labels).mean()
    np.testing.assert_allclose(measured["accuracy"], accuracy, atol=1e-6)


def test_features_are_measured_on_the_first_images_of_the_new_task(frozen_task):
    config, _, _, measured, _, features, _ = frozen_task
    assert config.measured_examples == 100
    for index, name in enumerate(("dense_0", "dense_1")):
        layer = features[name][:100]
        np.testing.assert_allclose(
            measured["dead_units"][index], (np.asarray(layer) == 0).all(0).mean()
        )
        np.testing.assert_allclose(
            measured["effective_rank"][index], metrics.effective_rank(layer), rtol=1e-3
        )
    assert np.isnan(measured["dead_units"][2])
    assert np.isnan(measured["effective_rank"][2])


def test_weight_magnitude_is_of_each_kernel(frozen_task):
    _, state, _, measured, _, _, _ = frozen_task
    expected = [
        np.abs(state.params[name]["kernel"]).mean()
        for name in ("dense_0", "dense_1", "head")
    ]
    np.testing.assert_allclose(measured["weight_magnitude"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sampling", "bootstrap", "without_replacement"),
        ("dataset", "minst", "mnist"),
        ("activation", "rleu", "leaky_relu"),
        ("hidden_units", 0, "at least 1"),
        ("method", "cbp", "continual_backprop"),
        ("optimizer", "sdg", "adam"),
        ("rank_method", "svdd", "gram"),
        ("measured_examples", 201, "examples_per_task"),
    ],
)
def test_bad_values_are_named_with_the_choices(field, value, message):
    config = pmnist.get_config("smoke")
    config[field] = value
    with pytest.raises(ValueError, match=message) as error:
        permuted_mnist.make_problem(config)
    assert str(value) in str(error.value)

"""How many units are in use: counted by hand."""

import functools

import jax
import numpy as np
import pytest

from cbp_jax import metrics

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")


def test_dead_units_are_exactly_zero_on_all_samples():
    features = np.ones((200, 5), np.float32)
    features[:, 0] = 0
    features[:, 1] = -0.0
    features[:, 2] = 1e-30
    features[1:, 3] = 0
    assert metrics.dead_units(features) == pytest.approx(2 / 5)
    maps = np.zeros((2, 3, 3, 4), np.float32)
    maps[1, 2, 2, :3] = -1
    assert metrics.dead_units(maps) == pytest.approx(1 / 4)


def test_dormant_units_are_active_on_under_one_percent():
    features = np.full((2000, 4), -1.0, np.float32)
    features[:19, 1] = 1
    features[:20, 2] = 1
    features[:, 3] = 1
    assert metrics.dormant_units(features) == pytest.approx(2 / 4)
    assert metrics.dormant_units(features, 0.5) == pytest.approx(3 / 4)
    assert metrics.dormant_units(features.reshape(20, 100, 4)) == pytest.approx(2 / 4)


def test_saturated_units_stay_near_the_asymptotes():
    inputs = np.zeros((200, 4), np.float32)
    inputs[:, 0] = 9
    inputs[:, 1] = np.where(np.arange(200) % 2, 9, -9)
    inputs[2:, 2] = 9
    inputs[3:, 3] = -9
    tanh = np.tanh(inputs)
    sigmoid = 1 / (1 + np.exp(-2 * inputs))
    assert metrics.saturated_units(tanh, -1, 1) == pytest.approx(3 / 4)
    assert metrics.saturated_units(sigmoid, 0, 1) == pytest.approx(3 / 4)
    strict = functools.partial(metrics.saturated_units, low=-1, high=1, threshold=1)
    assert strict(tanh) == pytest.approx(2 / 4)
    assert strict(0.94 * tanh) == pytest.approx(2 / 4)
    assert strict(0.94 * tanh, margin=0.01) == 0


def test_tau_dormant_units_are_weak_beside_their_layer():
    """Means of |h| are 0, 0.1, 1 and 2.9, so that the layer's is 1."""
    features = np.array([[0, 0.2, -1, 2.9], [0, 0, 1, -2.9]], np.float32)
    for tau, dormant in ((0, 1), (0.09, 1), (0.11, 2), (1.01, 3), (3, 4)):
        assert metrics.tau_dormant_units(features, tau) == pytest.approx(dormant / 4)
    assert metrics.tau_dormant_units(1000 * features, 0.11) == pytest.approx(2 / 4)
    assert metrics.tau_dormant_units(np.zeros((5, 3))) == 1


def test_gradient_dormant_units_get_little_gradient_beside_their_layer():
    """Means of |g| are 0, 0.1, 1 and 2.9, so that the layer's is 1."""
    gradients = np.array([[0, 0.2, -1, 2.9], [0, 0, 1, -2.9]], np.float32)
    for tau, dormant in ((0, 1), (0.09, 1), (0.11, 2), (1.01, 3)):
        found = metrics.gradient_dormant_units(gradients, tau)
        assert found == pytest.approx(dormant / 4)
    kernel = gradients.reshape(2, 1, 1, 4)
    assert metrics.gradient_dormant_units(kernel) == pytest.approx(1 / 4)
    # A layer with next to no gradient is dormant; to ReDo's smaller number it is not.
    assert metrics.gradient_dormant_units(1e-10 * gradients, 0.03) == 1
    assert metrics.tau_dormant_units(1e-10 * gradients, 0.03) < 1
    with pytest.raises(ValueError, match=r"gradients has shape \(4,\)"):
        metrics.gradient_dormant_units(gradients[0])


def test_always_on_units_are_positive_on_nine_tenths():
    features = np.zeros((20, 4), np.float32)
    features[:17, 1] = 1
    features[:18, 2] = 1
    features[:, 3] = 1
    assert metrics.always_on_units(features) == pytest.approx(2 / 4)
    assert metrics.always_on_units(features, 0.85) == pytest.approx(3 / 4)
    assert metrics.always_on_units(-features, 0.01) == 0


def test_duplicate_units_point_the_same_way():
    features = np.abs(np.random.default_rng(0).normal(size=(50, 8)))
    features[:, 1] = 3 * features[:, 0]
    features[:, 2] = -features[:, 3]
    features[:, 4] = features[:, 5] = 0
    directions = features / np.maximum(np.linalg.norm(features, axis=0), 1e-9)
    largest = (directions.T @ directions - 2 * np.eye(8)).max(axis=0)
    # Squares of numbers so small or large underflow or overflow.
    features = np.float32(features) * np.float32([1e-25, 1e25, *6 * [1e-25]])
    measure = jax.jit(jax.vmap(metrics.duplicate_units, (0, None)))
    for threshold in (0.6, 0.7, 0.95):
        expected = np.mean(largest > threshold)
        assert 0 < expected < 1
        np.testing.assert_allclose(measure(features[None], threshold), [expected])
    assert metrics.duplicate_units(features) == 2 / 8


@pytest.mark.parametrize(
    "fraction",
    [
        metrics.dead_units,
        metrics.dormant_units,
        functools.partial(metrics.saturated_units, low=0, high=1),
        functools.partial(metrics.gradient_dormant_units, threshold=0.1),
    ],
)
def test_fractions_of_nan_are_nan_and_work_under_jit_and_vmap(fraction):
    batch = np.zeros((3, 10, 4), np.float32)
    batch[0, :, 0] = 0.5
    batch[1, 0, 0] = np.nan
    result = jax.jit(jax.vmap(fraction))(batch)
    np.testing.assert_array_equal(result, [0.75, np.nan, 1])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda h: metrics.dead_units(h[0]),
            r"has shape \(5,\), expected \[..., samples, units\]",
        ),
        (lambda h: metrics.dormant_units(h, 1.5), r"threshold must be in \[0, 1\]"),
        (lambda h: metrics.saturated_units(h, 1, -1), "below high, got low=1 "),
        (lambda h: metrics.stable_rank(h, 99), r"threshold must be in \[0, 1\)"),
        (lambda h: metrics.approximate_rank(h, 1), r"threshold must be in \[0, 1\)"),
    ],
)
def test_what_would_be_measured_wrongly_is_an_error(measure, message):
    with pytest.raises(ValueError, match=message):
        measure(np.ones((3, 5), np.float32))

"""The target of the regression problem."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.streams import linear_threshold

TRACE = pathlib.Path(__file__).parents[1] / "traces" / "ltu_target.npz"


def test_target_reproduces_the_released_code_exactly():
    """The trace's biases are the weights of the constant bit."""
    trace = np.load(TRACE)
    weights = jnp.concatenate([trace["w0"], trace["b0"][None]])
    thresholds = linear_threshold.unit_thresholds(weights, float(trace["beta"]))
    np.testing.assert_allclose(thresholds, trace["tau"], atol=1e-6)
    network = linear_threshold.LinearThresholdNetwork(
        weights, thresholds, trace["w1"][:, 0], trace["b1"][0]
    )
    bits = np.concatenate([trace["x"], np.ones((len(trace["x"]), 1), "float32")], 1)
    outputs = linear_threshold.network_outputs(network, jnp.asarray(bits))
    np.testing.assert_array_equal(outputs, trace["y"][:, 0])


def test_drawn_targets_are_signs_and_differ_between_keys():
    networks = [
        linear_threshold.draw_network(jax.random.key(seed), 21, 100, 0.7)
        for seed in (0, 1)
    ]
    for weights, thresholds, output_weights, output_bias in networks:
        assert weights.shape == (21, 100)
        for signs in (weights, output_weights, output_bias):
            np.testing.assert_array_equal(np.abs(signs), 1)
        # 2,100 fair coins: 4 standard deviations are 0.09.
        assert abs(float(weights.mean())) < 0.09
        assert abs(float(output_weights.mean())) < 0.4
        np.testing.assert_array_equal(
            thresholds, linear_threshold.unit_thresholds(weights, 0.7)
        )
    assert (networks[0].weights != networks[1].weights).mean() > 0.4

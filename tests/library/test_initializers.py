"""The initial distributions: bounds, gains, shape of the distribution, widths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cbp_jax import initializers

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

PAPER_GAINS = {
    "tanh": 1.6667,
    "sigmoid": 1.0,
    "relu": 1.41421,
    "leaky_relu": 1.41414,
    "elu": 1.41421,
    "swish": 1.41421,
    "linear": 1.0,
}
# Of activations that are not in the paper; with a slope a it is sqrt(2 / (1 + a^2)).
OTHER_GAINS = {
    "adalin_tanh": 1.6667,
    "aid": 1.41421,
    "prelu": 1.41421,
    "randomized_smooth_leaky": 1.37848,
    "smooth_leaky": 1.40720,
}
DENSE = (64, 128)
CONVOLUTION = (5, 3, 16, 32)


def draw(initializer, shape=DENSE, seed=0, dtype=jnp.float32):
    return np.asarray(initializer(jax.random.key(seed), shape, dtype))


def test_gains_are_the_papers():
    gains = PAPER_GAINS | OTHER_GAINS
    assert set(initializers.GAINS) == set(gains)
    for activation, gain in gains.items():
        assert initializers.GAINS[activation] == pytest.approx(gain, abs=1e-4)
    assert initializers.GAINS["leaky_relu"] < initializers.GAINS["relu"]


@pytest.mark.parametrize("activation", PAPER_GAINS)
@pytest.mark.parametrize(("shape", "fan_in"), [(DENSE, 64), (CONVOLUTION, 240)])
def test_kaiming_fills_the_range_up_to_its_bound(activation, shape, fan_in):
    bound = PAPER_GAINS[activation] * math.sqrt(3 / fan_in)
    weights = draw(initializers.kaiming_uniform(activation), shape)
    assert weights.shape == shape
    assert weights.max() == pytest.approx(bound, rel=5e-3)
    assert weights.min() == pytest.approx(-bound, rel=5e-3)


@pytest.mark.parametrize(
    ("initializer", "bound"),
    [
        (initializers.kaiming_uniform("tanh"), 5 / 3 * math.sqrt(3 / 240)),
        (initializers.uniform_fan_in(), 1 / math.sqrt(240)),
    ],
)
def test_weights_follow_the_uniform_distribution(initializer, bound):
    weights = draw(initializer, CONVOLUTION).ravel()
    uniform = scipy.stats.uniform(-bound, 2 * bound)
    assert scipy.stats.kstest(weights, uniform.cdf).pvalue > 0.01
    wider = scipy.stats.uniform(-1.1 * bound, 2.2 * bound)
    assert scipy.stats.kstest(weights, wider.cdf).pvalue < 1e-6


def test_kaiming_keeps_the_second_moment_through_relu_layers():
    hidden = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    initializer = initializers.kaiming_uniform("relu")
    for seed in range(4):
        hidden = np.maximum(hidden @ draw(initializer, (512, 512), seed), 0)
    # A gain of 1 would leave a sixteenth of it.
    assert np.mean(hidden**2) == pytest.approx(1, rel=0.1)


def test_a_bias_takes_the_fan_in_of_its_kernel():
    bias = draw(initializers.uniform_fan_in(fan_in=100), (1000,))
    assert bias.shape == (1000,)
    assert np.abs(bias).max() == pytest.approx(0.1, rel=1e-2)
    assert np.abs(bias).max() <= 0.1


@pytest.mark.parametrize(
    "initializer", [initializers.kaiming_uniform("relu"), initializers.uniform_fan_in()]
)
def test_a_shape_without_fan_in_is_an_error(initializer):
    with pytest.raises(ValueError, match=r"\(128,\) has no fan-in"):
        initializer(jax.random.key(0), (128,), jnp.float32)


def test_unknown_activation_lists_the_choices():
    with pytest.raises(ValueError, match="'gelu'.*'elu', 'leaky_relu', .*'tanh'"):
        initializers.kaiming_uniform("gelu")


@pytest.mark.parametrize(
    "initializer",
    [
        initializers.kaiming_uniform("relu"),
        initializers.uniform_fan_in(),
        initializers.unit_by_unit(jax.nn.initializers.he_normal()),
    ],
)
def test_dtype_is_the_one_asked_for(initializer):
    key = jax.random.key(0)
    assert initializer(key, DENSE, jnp.bfloat16).dtype == jnp.bfloat16
    assert initializer(key, DENSE).dtype == jnp.float32
    with jax.enable_x64(True):
        assert initializer(key, DENSE).dtype == jnp.float64


def test_initializers_run_under_jit_and_vmap():
    initializer = initializers.kaiming_uniform("relu")
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(lambda key: initializer(key, DENSE, jnp.float32)))(keys)
    for key, weights in zip(keys, batched, strict=True):
        np.testing.assert_array_equal(weights, initializer(key, DENSE, jnp.float32))

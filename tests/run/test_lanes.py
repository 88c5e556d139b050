import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_digits

from experiments.learning.checks import ConfigError
from experiments.run import lanes
from experiments.run.config import make_grid


def test_grid_orders_lanes_by_swept_values_then_seeds():
    config = tiny_digits(num_seeds=2, first_seed=7)
    config.sweep.step_size = (0.1, 0.2, 0.3)
    config.sweep.replacement_rate = (0.0, 0.5)
    grid = make_grid(config)
    assert list(grid.coordinates) == ["step_size", "replacement_rate", "seed"]
    assert grid.shape == (3, 2, 2)
    np.testing.assert_array_equal(grid.lanes.seed, [7, 8] * 6)
    hyperparameters = grid.lanes.hyperparameters
    np.testing.assert_allclose(
        hyperparameters["step_size"], np.repeat([0.1, 0.2, 0.3], 4)
    )
    np.testing.assert_array_equal(
        hyperparameters["replacement_rate"], [0, 0, 0.5, 0.5] * 3
    )


def test_hyperparameters_that_are_zero_everywhere_cost_nothing():
    config = tiny_digits(momentum=0.0, weight_decay=0.0)
    config.sweep.weight_decay = (0.0, 1e-4)
    names = make_grid(config).lanes.hyperparameters
    assert "momentum" not in names
    assert "weight_decay" in names


@pytest.mark.parametrize("name", ["hidden_units", "num_tasks", "typo"])
def test_sweeping_what_cannot_be_traced_is_an_error(name):
    config = tiny_digits()
    with config.sweep.unlocked():
        config.sweep[name] = (1, 2)
    with pytest.raises(ValueError, match=f"config.sweep .*contain.* '{name}'") as error:
        make_grid(config)
    assert ("config.cases" in str(error.value)) == (name in config)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("step_size", -0.1, "[0, inf)"),
        ("step_size", float("inf"), "[0, inf)"),
        ("step_size", 1e39, "[0, inf), got 1e+39, which is inf in float32"),
        ("noise_scale", float("inf"), "[0, inf)"),
        ("weight_decay", float("inf"), "[0, inf)"),
        ("weight_decay", float("nan"), "[0, inf), got nan."),
        ("replacement_rate", 1.5, "[0, 1]"),
        ("decay_rate", 1.0, "[0, 1), got 1.0."),
        ("decay_rate", 1 - 1e-12, "[0, 1), got 0.999999999999, which is 1.0 in"),
        ("b2", 1.0, "[0, 1)"),
        ("maturity_threshold", -1, "[0, inf]"),
    ],
)
def test_values_out_of_range_are_errors_also_in_a_sweep(name, value, allowed):
    config = tiny_digits(**{name: value})
    expected = re.escape(f"config.{name} must be in {allowed}")
    with pytest.raises(ConfigError, match=expected):
        make_grid(config)
    config = tiny_digits()
    config.sweep[name] = (0.5, float(value))
    expected = re.escape(f"config.sweep.{name} must be in {allowed}")
    with pytest.raises(ConfigError, match=expected):
        make_grid(config)


@pytest.mark.parametrize("value", ["fast", (0.1, 0.2), 10**400])
def test_a_sweep_of_what_is_no_number_is_an_error(value):
    config = tiny_digits()
    config.sweep.step_size = (0.5, value)
    with pytest.raises(ConfigError, match="config.sweep.step_size must be a number"):
        make_grid(config)


def test_an_infinite_maturity_replaces_nobody_and_is_allowed():
    config = tiny_digits()
    config.sweep.maturity_threshold = (5.0, float("inf"))
    maturity = make_grid(config).lanes.hyperparameters["maturity_threshold"]
    np.testing.assert_array_equal(maturity, [5, 5, np.inf, np.inf])


@pytest.mark.parametrize("values", [(0.1, 0.1), (0.1, 0.2, 0.1 + 1e-12)])
def test_a_value_swept_twice_is_an_error(values):
    config = tiny_digits()
    config.sweep.step_size = values
    with pytest.raises(
        ConfigError, match="config.sweep.step_size contains a value twice"
    ):
        make_grid(config)


@pytest.mark.parametrize(("first", "number"), [(2**32 - 1, 2), (2**32, 1), (0, 2**33)])
def test_seeds_that_do_not_fit_into_32_bits_are_errors(first, number):
    with pytest.raises(ConfigError, match="no seed above 4294967295; got"):
        make_grid(tiny_digits(first_seed=first, num_seeds=number))


def test_the_last_seed_is_a_seed():
    grid = make_grid(tiny_digits(first_seed=2**32 - 2, num_seeds=2))
    np.testing.assert_array_equal(grid.lanes.seed, [2**32 - 2, 2**32 - 1])


def test_more_lanes_than_can_be_counted_out_are_an_error():
    with pytest.raises(ConfigError, match="make 4000000000 lanes"):
        make_grid(tiny_digits(num_seeds=4_000_000_000))


def test_no_seeds_is_an_error():
    with pytest.raises(ValueError, match="num_seeds"):
        make_grid(tiny_digits(num_seeds=0))


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_lane_map_maps_every_lane_on_any_devices_and_blocks(num_devices, block):
    """Seven lanes never fill the devices evenly, so padding must not leak."""
    lane_map = lanes.LaneMap(7, block, jax.devices()[:num_devices])

    def function(state, lane, shared):
        return state + lane * shared, {"square": lane**2}

    run = lane_map.jit(function, num_shared=1, donate=True)
    numbers = np.arange(7, dtype=np.float32)
    state, metrics = run(
        lane_map.put(numbers * 10), lane_map.put(numbers), lane_map.replicate(2.0)
    )
    np.testing.assert_array_equal(lane_map.get(state), numbers * 12)
    np.testing.assert_array_equal(lane_map.get(metrics)["square"], numbers**2)


def test_all_finite_finds_a_nan_anywhere_and_passes_over_integers():
    tree = {"a": jnp.ones(3), "b": jnp.arange(2), "key": jax.random.key(0)}
    assert lanes.all_finite(tree)
    assert not lanes.all_finite(tree | {"a": jnp.array([1.0, jnp.nan])})
    assert not lanes.all_finite(tree | {"a": jnp.array([1.0, jnp.inf])})

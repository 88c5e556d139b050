"""The parts of the data that a learner sees, phase by phase."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from experiments.learning.checks import ConfigError
from experiments.streams import growing_data

NUM_IMAGES = 40
PARTS = {"shares": (0.1, 0.5, 1.0), "phase_tasks": (2, 1), "examples_per_task": 50}


def config(**fields):
    digits = {"dataset": "digits", "data_dir": "", "conv_channels": ()}
    return ConfigDict(PARTS | digits | fields)


@pytest.fixture(scope="module")
def orders():
    """Orders [lanes, tasks, T] of two lanes and five tasks."""
    draw = jax.vmap(
        lambda seed, task: growing_data.draw_order(
            config(), jax.random.key(seed), task, NUM_IMAGES
        ),
        (None, 0),
    )
    draw = jax.jit(jax.vmap(draw, (0, None)))
    return np.asarray(draw(jnp.arange(2), jnp.arange(5)))


def test_each_phase_has_exactly_its_share_and_contains_the_earlier_ones(orders):
    """Tasks 0 and 1 have 4 images of 40, task 2 has 20, the others all."""
    for lane in orders:
        seen = [set(order.tolist()) for order in lane]
        assert [len(images) for images in seen] == [4, 4, 20, 40, 40]
        assert seen[0] == seen[1] < seen[2] < seen[3] == set(range(NUM_IMAGES))
    assert set(orders[0, 0]) != set(orders[1, 0])


def test_no_image_comes_again_before_all_have_come(orders):
    """The last pass is incomplete: 2 of 4 images, 10 of 20, or 10 of 40."""
    for task, number in enumerate((4, 4, 20, 40, 40)):
        for order in orders[:, task]:
            passes = [order[i : i + number].tolist() for i in range(0, 50, number)]
            assert all(len(set(one)) == len(one) for one in passes)
            assert len({tuple(one) for one in passes}) > 1
    for lane in orders:
        assert (lane[0] != lane[1]).any()
        assert set(lane[3, 40:].tolist()) != set(lane[4, 40:].tolist())


def test_digits_are_split_by_their_place():
    digits = growing_data.datasets.load("digits")
    stream = growing_data.make_stream(config())
    joined = np.concatenate([stream.data["images"], stream.data["test_images"]])
    assert len(stream.data["labels"]) == 1200
    np.testing.assert_array_equal(joined, digits.images.reshape(1797, 64))
    np.testing.assert_array_equal(stream.data["test_labels"], digits.labels[1200:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phase_tasks": (2,)}, r"2 numbers for .*\(0.1, 0.5, 1.0\), got \(2,\)"),
        ({"phase_tasks": (2, 0)}, "at least 1, of each phase"),
        ({"shares": (0.1, 0.5, 1.1)}, "fractions of the training images"),
        ({"shares": (1e-4, 0.5, 1.0)}, "above 0"),
        ({"shares": (), "phase_tasks": ()}, r"got \(\)"),
        ({"shares": (0.5, 0.1, 1.0)}, "none below the one before"),
        ({"dataset": "digit"}, "dataset must be one of"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(fields, message):
    with pytest.raises(ConfigError, match=message):
        growing_data.phase_starts(config(**fields))
        growing_data.make_stream(config(**fields))

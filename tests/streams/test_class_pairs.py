"""Pairs of classes, task by task, and textures to make them of."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from experiments.learning.checks import ConfigError
from experiments.streams import class_pairs, textures

KEYS = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))


@pytest.fixture(scope="module")
def drawn_classes():
    """Classes [lanes, tasks, 2] of three lanes and 12 tasks, of 9 classes."""
    tasks = jnp.arange(12)
    draw = jax.vmap(class_pairs.draw_classes, (None, 0, None))
    return np.asarray(
        jax.jit(jax.vmap(draw, (0, None, None)), static_argnums=2)(KEYS, tasks, 9)
    )


def test_pairs_hold_every_class_once_and_then_recur(drawn_classes):
    """Four pairs of nine classes; the ninth is left out."""
    for lane in drawn_classes:
        assert len(np.unique(lane[:4])) == 8
        assert set(lane[:4].ravel()) <= set(range(9))
        np.testing.assert_array_equal(lane[4:8], lane[:4])
        np.testing.assert_array_equal(lane[8:], lane[:4])


def test_each_seed_has_an_order_of_its_own(drawn_classes):
    assert len({lane.tobytes() for lane in drawn_classes}) == 3


def test_each_epoch_and_task_shuffles_all_images_anew():
    draw = jax.jit(class_pairs.draw_orders, static_argnums=(2, 3))
    orders = np.concatenate(
        [draw(KEYS[lane], task, 2, 30) for lane, task in [(0, 0), (0, 1), (1, 0)]]
    )
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(30))
    assert len(np.unique(orders, axis=0)) == 6


def texture_config(**fields):
    return ConfigDict(
        {
            "dataset": "textures",
            "data_dir": "",
            "num_classes": 0,
            "train_per_class": 4,
            "test_per_class": 3,
            "texture_pixels": 8,
        }
        | fields
    )


def draw_pairs(config, lanes_and_tasks):
    stream = class_pairs.make_stream(config)
    draw = jax.jit(stream.draw_pair)
    return [draw(KEYS[lane], jnp.int32(task), {}) for lane, task in lanes_and_tasks]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_textures_without_end_are_new_in_each_task_and_lane():
    pairs = draw_pairs(texture_config(), [(0, 0), (0, 1), (1, 0), (0, 0)])
    for pair in pairs:
        assert pair.train.shape == (2, 4, 8, 8, 3)
        assert pair.test.shape == (2, 3, 8, 8, 3)
        assert pair.train.dtype == pair.test.dtype == np.uint8
    assert same(pairs[0], pairs[3])
    images = np.concatenate([np.concatenate(pair, 1) for pair in pairs[:3]])
    assert len(np.unique(images.reshape(6 * 7, -1), axis=0)) == 6 * 7


def test_a_number_of_texture_classes_recurs_and_is_common_to_all_lanes():
    """Of two classes each task has both, in the order of the seed."""
    pairs = draw_pairs(texture_config(num_classes=2), [(0, 0), (0, 5), (1, 0), (2, 0)])
    assert same(pairs[0], pairs[1])
    for pair in pairs[2:]:
        for split, wanted in zip(pair, pairs[0], strict=True):
            assert {c.tobytes() for c in np.asarray(split)} == {
                c.tobytes() for c in np.asarray(wanted)
            }


@pytest.fixture(scope="module")
def many_textures():
    """Images [classes, images, pixels, pixels, channels] over 255, less their mean."""

    def draw(key):
        texture_key, image_key = jax.random.split(key)
        texture = textures.draw_texture(texture_key)
        return textures.draw_images(texture, image_key, 64, 16)

    images = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 40))
    return (np.asarray(images) - textures.MEAN_PIXEL) / 255


def test_the_mean_of_all_textures_is_the_one_declared(many_textures):
    """2,560 images of standard deviation 0.22; 40 tints of 0.005."""
    mean = many_textures.mean((0, 1))
    assert np.abs(mean).max() < 5 * 0.25 / np.sqrt(40 * 64)
    assert np.abs(mean.mean()) < 0.002


def test_classes_differ_in_their_stripes_not_in_their_pixels(many_textures):
    """The spectrum tells classes apart, the mean image of a class hardly does.

    For both the spread between classes is compared with what 64 images leave of the
    spread within them.
    """

    def share_between(values):
        within = values.var(axis=1).mean() / values.shape[1]
        return values.mean(axis=1).var(axis=0).mean() / within

    spectra = np.abs(np.fft.fft2(many_textures, axes=(2, 3))) ** 2
    assert share_between(spectra) > 10
    assert share_between(many_textures) < 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "imagenet"}, r"one of \['textures', 'class_files', .*'imagenet'"),
        ({"num_classes": 1}, "num_classes must be at least 2, or 0 .*got 1"),
        ({"num_classes": -2}, "got -2"),
        ({"train_per_class": 0}, "train_per_class must be at least 1"),
        ({"test_per_class": 0}, "test_per_class must be at least 1"),
        ({"texture_pixels": 0}, "texture_pixels must be at least 1"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        class_pairs.make_stream(texture_config(**fields))

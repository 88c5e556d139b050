"""The stream of changing labels: images that stay, and labels that do not."""

import jax
import jax.numpy as jnp
import numpy as np
from optional_data import TFDS_DIR, needs_cifar100
import pytest
from tiny_runs import stream_key, tiny_labels

from experiments.learning.checks import ConfigError
from experiments.streams import changing_labels, datasets


def make(**fields):
    return changing_labels.make_stream(tiny_labels(**fields))


def random_labels(**fields):
    return make(labels="random", num_test_images=0, **fields)


def drawn(stream, task, seed=0, of="sample"):
    """Indices of the images in the data set, and their labels."""
    draw = stream.sample if of == "sample" else stream.evaluations[of]
    items, _ = draw(stream_key(seed), jnp.int32(task), stream.data)
    return [np.asarray(item) for item in items]


def labels_by_image(stream, task, **more):
    images, labels = drawn(stream, task, **more)
    return dict(zip(images.tolist(), labels.tolist(), strict=True))


def test_each_pass_shows_the_images_of_the_seed_once():
    stream = make()
    sets = {}
    for seed in (0, 1):
        for task in (0, 3):
            images, _ = drawn(stream, task, seed)
            first, second = images[:20], images[20:]
            assert len(set(first.tolist())) == 20
            assert set(first.tolist()) == set(second.tolist())
            assert not np.array_equal(first, second)
            sets[seed, task] = set(first.tolist())
        assert sets[seed, 0] == sets[seed, 3]
        tested, _ = drawn(stream, 0, seed, of="test_accuracy")
        assert len(set(tested.tolist()) - sets[seed, 0]) == 10
    assert sets[0, 0] != sets[1, 0]


def test_inputs_are_the_scaled_images():
    stream = make()
    items, read = stream.sample(stream_key(0), jnp.int32(1), stream.data)
    inputs, labels = read(items)
    wanted = datasets.load("digits").images.reshape(-1, 64)[np.asarray(items[0])] / 16
    np.testing.assert_array_equal(inputs, wanted.astype(np.float32))
    np.testing.assert_array_equal(labels, items[1])


def test_permuted_labels_rename_the_classes():
    stream = make()
    classes = stream.data["labels"]
    for task in (0, 2):
        names = np.asarray(
            changing_labels.draw_names(stream_key(0), jnp.int32(task), 10, 10)
        )
        np.testing.assert_array_equal(np.sort(names), np.arange(10))
        for of in ("sample", "train_accuracy", "test_accuracy"):
            images, labels = drawn(stream, task, of=of)
            np.testing.assert_array_equal(labels, names[classes[images]])


def test_random_labels_are_uniform_and_stay_for_a_task():
    stream = random_labels(num_images=1500, examples_per_task=3000)
    images, labels = drawn(stream, 4)
    by_image = labels_by_image(stream, 4)
    assert all(by_image[i] == label for i, label in zip(images, labels, strict=True))
    counts = np.bincount(list(by_image.values()), minlength=10)
    assert counts.sum() == 1500
    # Chi-squared of 9 degrees of freedom: 99.99 % lie below 34.
    assert ((counts - 150) ** 2 / 150).sum() < 34
    # They say nothing about the classes, nor about the labels of another task.
    own_class = [stream.data["labels"][image] for image in by_image]
    other = labels_by_image(stream, 5)
    for others in (own_class, [other[image] for image in by_image]):
        assert abs(np.mean(np.array(others) == list(by_image.values())) - 0.1) < 0.04


def test_so_many_images_take_turns_in_new_labels():
    """Of 20 images 3 change with each task, in turns, so 7 tasks change all."""
    num_classes = 10**6  # So that new labels are other labels.
    draw = jax.jit(
        lambda task: changing_labels.draw_labels(
            stream_key(0), task, 20, num_classes, 3
        )
    )
    labels = np.stack([draw(jnp.int32(task)) for task in range(9)])
    for task in range(1, 9):
        changed = np.flatnonzero(labels[task] != labels[task - 1])
        turn = np.arange(3 * (task - 1), 3 * task) % 20
        np.testing.assert_array_equal(changed, np.sort(turn))
    assert len(np.unique(labels[:, 0])) == 3  # Drawn first, in tasks 1 and 7.


def test_so_many_classes_exchange_their_names():
    names = [
        np.asarray(changing_labels.draw_names(stream_key(0), jnp.int32(task), 10, 3))
        for task in range(3)
    ]
    assert [(names[t] != names[t + 1]).sum() for t in range(2)] == [3, 3]


def test_no_change_is_a_stream_that_stays():
    stream = random_labels(change_fraction=0.0)
    assert labels_by_image(stream, 0) == labels_by_image(stream, 7)


def test_labels_fade_in_and_the_task_is_judged_by_its_own():
    stream, faded = make(), make(transition=30)
    images, labels = drawn(stream, 1)
    old = labels_by_image(stream, 0)
    same_images, mixed = drawn(faded, 1)
    np.testing.assert_array_equal(images, same_images)
    old_labels = np.array([old[image] for image in images.tolist()])
    steps = np.arange(31)
    is_new = np.diff(steps**2 // 60).astype(bool)
    np.testing.assert_array_equal(
        mixed[:30], np.where(is_new, labels[:30], old_labels[:30])
    )
    assert is_new.sum() == 15
    np.testing.assert_array_equal(mixed[30:], labels[30:])
    assert labels_by_image(faded, 1, of="train_accuracy") == labels_by_image(stream, 1)


def test_tasks_recur_exactly():
    for stream in (make(recurrent=3), random_labels(recurrent=3)):
        tasks = [np.stack(drawn(stream, task)) for task in (1, 4, 2)]
        np.testing.assert_array_equal(tasks[0], tasks[1])
        assert not np.array_equal(tasks[0][1], tasks[2][1])


@pytest.mark.slow
def test_a_task_shorter_than_a_pass_is_judged_by_what_it_showed():
    stream = make(examples_per_task=12, measured_examples=12)
    shown, labels = drawn(stream, 1)
    judged = drawn(stream, 1, of="train_accuracy")
    np.testing.assert_array_equal(judged, [shown, labels])


@pytest.mark.slow
def test_all_images_are_for_training_except_those_to_test():
    stream = make(num_images=0, num_test_images=97, examples_per_task=1700)
    images, _ = drawn(stream, 0)
    tested, _ = drawn(stream, 0, of="test_accuracy")
    assert set(images.tolist()) | set(tested.tolist()) == set(range(1797))


@pytest.mark.slow
def test_textures_have_as_many_images_of_each_class():
    stream = make(
        dataset="textures", texture_classes=5, texture_pixels=8, conv_channels=(2,)
    )
    assert (stream.input_shape, stream.num_classes) == ((8, 8, 3), 5)
    assert stream.data["images"].shape == (30, 8, 8, 3)
    np.testing.assert_array_equal(np.bincount(stream.data["labels"]), [6] * 5)
    flat = make(dataset="textures", texture_classes=5, texture_pixels=8)
    assert flat.input_shape == (192,)


@needs_cifar100
@pytest.mark.slow
def test_cifar100_has_two_kinds_of_classes():
    fine, coarse = (
        datasets.load(name, TFDS_DIR) for name in ("cifar100", "cifar100_coarse")
    )
    np.testing.assert_array_equal(fine.images, coarse.images)
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    pairs = set(zip(fine.labels.tolist(), coarse.labels.tolist(), strict=True))
    assert len(pairs) == 100  # Each class is of one coarse class, five of each.
    np.testing.assert_array_equal(np.bincount([one for _, one in pairs]), [5] * 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": "shuffled"}, r"\['random', 'permuted'\], got 'shuffled'"),
        ({"dataset": "minst"}, "'textures', 'digits'.*got 'minst'"),
        ({"sampling": "bootstrap"}, "without_replacement"),
        ({"labels": "random"}, "num_test_images must be 0 .*got 10"),
        ({"num_images": -1}, "num_images must be at least 0, got -1"),
        ({"num_images": 1790}, "1797 images, but .* 1790 and .* 10: lower"),
        ({"num_images": 0, "dataset": "textures"}, "num_images must be at least 1"),
        ({"change_fraction": 0.1}, "10 classes is 1, but at least 2"),
        ({"transition": 50}, r"\(40\), got 50"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make(**fields)

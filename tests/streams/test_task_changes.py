"""Tasks that change in part, fade in or recur, by exact counts."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from tiny_runs import stream_key, tiny_digits

from experiments.learning.checks import ConfigError
from experiments.streams import permuted_images, task_changes
from experiments.streams.task_changes import draw_permutation

SIZE = 12
TASKS = 6


def permutations(num_changed):
    """Those of the first tasks, each drawn alone, [TASKS, SIZE]."""

    def draw(task):
        return draw_permutation(
            lambda task: jax.random.fold_in(stream_key(0), task),
            task,
            SIZE,
            num_changed,
        )

    return np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(TASKS)))


def test_a_permutation_moves_exactly_so_many_entries_with_each_task():
    for num_changed in (0, 2, 5):
        drawn = permutations(num_changed)
        np.testing.assert_array_equal(np.sort(drawn), [np.arange(SIZE)] * TASKS)
        moved = drawn[1:] != drawn[:-1]
        np.testing.assert_array_equal(moved.sum(axis=1), num_changed)
    # Other entries move in other tasks.
    assert len(np.unique(moved, axis=0)) == TASKS - 1


def test_if_all_change_each_task_has_a_permutation_of_its_own():
    drawn = permutations(SIZE)
    for task, permutation in enumerate(drawn):
        key = jax.random.fold_in(stream_key(0), task)
        np.testing.assert_array_equal(permutation, jax.random.permutation(key, SIZE))


@pytest.mark.parametrize("length", [1, 10, 40])
def test_a_task_fades_in_linearly(length):
    config = ConfigDict({"transition": length, "examples_per_task": 40})
    is_new = task_changes.is_of_new_task(config)
    assert is_new.shape == (40,)
    assert is_new[length:].all()
    seen = np.arange(1, length + 1)
    counts = [number * number // (2 * length) for number in seen.tolist()]
    np.testing.assert_array_equal(np.cumsum(is_new[:length]), counts)


def test_tasks_recur_and_the_first_has_no_predecessor():
    tasks = jnp.arange(7)
    found = task_changes.task_and_previous(ConfigDict({"recurrent": 3}), tasks)
    np.testing.assert_array_equal(found[0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(found[1], [0, 0, 1, 2, 0, 1, 2])
    found = task_changes.task_and_previous(ConfigDict({"recurrent": 0}), tasks)
    np.testing.assert_array_equal(found[0], tasks)
    np.testing.assert_array_equal(found[1], [0, 0, 1, 2, 3, 4, 5])


def presented(task, **fields):
    """Inputs and labels of a task of permuted digits."""
    stream = permuted_images.make_stream(tiny_digits(**fields))
    items, read = stream.sample(stream_key(0), jnp.int32(task), stream.data)
    return [np.asarray(array) for array in read(items)]


def test_examples_of_permuted_images_come_from_either_task():
    """Example j of the transition has the permutation of the task that it belongs to.

    Where tasks 1 and 2 recur, task 3 is task 1 behind task 2.
    """
    inputs, labels = presented(1)
    faded, same_labels = presented(1, transition=20)
    np.testing.assert_array_equal(labels, same_labels)
    is_old = (faded != inputs).any(axis=1)
    assert is_old[:20].sum() == 10
    assert not is_old[20:].any()
    # The same images in the permutation of task 0: sorted pixels are theirs.
    np.testing.assert_array_equal(np.sort(faded), np.sort(inputs))
    config = tiny_digits()
    old, new = (
        np.asarray(permuted_images.draw_task(config, stream_key(0), task, 64, 1797)[0])
        for task in (0, 1)
    )
    unpermuted = np.empty_like(faded)
    unpermuted[:, new] = inputs
    np.testing.assert_array_equal(faded[is_old], unpermuted[is_old][:, old])
    np.testing.assert_array_equal(presented(0, transition=20)[0], presented(0)[0])


@pytest.mark.slow
def test_permuted_images_recur_and_change_in_part():
    first = presented(1)
    again = presented(4, recurrent=3)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    config = tiny_digits(change_fraction=0.25)
    pixels = [
        np.asarray(permuted_images.draw_task(config, stream_key(0), task, 64, 30)[0])
        for task in range(3)
    ]
    assert [(pixels[t] != pixels[t + 1]).sum() for t in (0, 1)] == [16, 16]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"change_fraction": 1.5}, "from 0 to 1, got 1.5"),
        ({"change_fraction": 0.01}, "64 pixels is 1, but at least 2.*at least 0.031"),
        ({"transition": 41}, r"examples_per_task \(40\), got 41"),
        ({"recurrent": -1}, "at least 1, or 0 .*got -1"),
    ],
)
def test_bad_changes_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        permuted_images.make_stream(tiny_digits(**fields))

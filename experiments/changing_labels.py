"""Changing Labels: the same images, whose labels change from task to task.

    python -m experiments.changing_labels --config=configs/labels.py

Each task gives the images random labels, or permutes the names of their classes, and
presents them one at a time or in mini-batches, in random order and as often as the task
has examples. Nothing is reset or signaled when the labels change, except to methods
whose definition requires it.
"""

from typing import Any

from experiments.learning.problem import Problem
from experiments.learning.stream_problem import make_stream_problem
from experiments.run import command_line
from experiments.streams import changing_labels


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: a config as in `configs/labels.py`.

    Returns:
      The problem, with the metrics of `make_stream_problem` and, at the end of a task,
      `train_accuracy` and, with test images, `test_accuracy` (fractions).

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    stream = changing_labels.make_stream(config)
    return make_stream_problem(
        config,
        stream.sample,
        input_shape=stream.input_shape,
        num_outputs=stream.num_classes,
        loss="cross_entropy",
        data=stream.data,
        evaluations=stream.evaluations,
    )


if __name__ == "__main__":
    command_line.run("changing_labels", make_problem)

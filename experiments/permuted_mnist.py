"""Online Permuted MNIST: images whose pixels are permuted differently in each task.

    python -m experiments.permuted_mnist --config=configs/pmnist.py

Each task draws a permutation of the pixels and presents images one at a time, in random
order, with one update per image (or per mini-batch of `config.batch_size`). Nothing is
reset or signaled when the task changes, except to methods whose definition requires it.
"""

from typing import Any

from experiments.learning.problem import Problem
from experiments.learning.stream_problem import make_stream_problem
from experiments.run import command_line
from experiments.streams import permuted_images


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: a config as in `configs/pmnist.py`.

    Returns:
      The problem, with the metrics of `make_stream_problem`.

    Raises:
      ValueError: a field is out of range, or the data set cannot be loaded.
    """
    stream = permuted_images.make_stream(config)
    return make_stream_problem(
        config,
        stream.sample,
        input_shape=(stream.num_pixels,),
        num_outputs=stream.num_classes,
        loss="cross_entropy",
        data=stream.data,
    )


if __name__ == "__main__":
    command_line.run("permuted_mnist", make_problem)

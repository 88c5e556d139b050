"""Slowly-Changing Regression: a target network seen through slowly drifting inputs.

    python -m experiments.slowly_changing_regression --config=configs/scr.py

A small network learns, one example at a time, the outputs of a larger network of linear
threshold units for random bits. A task is just a bin of examples to average over:
nothing is reset or signaled, and the inputs drift independently of it.
"""

from typing import Any

from experiments.learning.checks import check_batch_size
from experiments.learning.problem import Problem
from experiments.learning.stream_problem import make_stream_problem
from experiments.run import command_line
from experiments.streams import drifting_bits


def make_problem(config: Any) -> Problem:
    """Builds the problem of a case's config.

    Args:
      config: a config as in `configs/scr.py`.

    Returns:
      The problem, with the metrics of `make_stream_problem` per bin.

    Raises:
      ValueError: a field is out of range.
    """
    sample = drifting_bits.make_stream(config)
    check_batch_size(config, "drift_every")
    return make_stream_problem(
        config,
        sample,
        # The constant bit is not an input of the learner, which has biases.
        input_shape=(config.num_bits - 1,),
        num_outputs=1,
        loss="squared_error",
        examples_per_change=config.drift_every,
    )


if __name__ == "__main__":
    command_line.run("slowly_changing_regression", make_problem)

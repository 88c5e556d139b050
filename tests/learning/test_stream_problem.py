"""What a stream returns is checked before a run."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import tiny_digits

from experiments.learning.checks import ConfigError
from experiments.learning.stream_problem import make_stream_problem
from experiments.run.cases import prepare_cases


def prepare(inputs, targets, dtype, loss, num_outputs):
    """Traces a stream that returns arrays of these shapes, of inputs of 3 numbers."""

    def make_problem(config):
        return make_stream_problem(
            config,
            lambda key, task, data: (
                jax.random.normal(key, inputs),
                jnp.zeros(targets, dtype),
            ),
            input_shape=(3,),
            num_outputs=num_outputs,
            loss=loss,
        )

    return prepare_cases(
        tiny_digits(cases={"backprop": {"method": "backprop"}}), make_problem
    )


@pytest.mark.parametrize(
    ("inputs", "targets", "dtype", "loss", "message"),
    [
        ((39, 3), (39,), int, "cross_entropy", "39 examples, .*per_task is 40"),
        ((40, 3), (39,), int, "cross_entropy", "39 and 40 examples"),
        ((40, 4), (40,), int, "cross_entropy", r"inputs of shape \(4,\).*is \(3,\)"),
        ((40, 3), (40,), float, "cross_entropy", "float32 targets.*from 0 to 1"),
        ((40, 3), (40, 2), int, "cross_entropy", r"shape \(2,\).*of shape \(\)"),
        ((40, 3), (40,), float, "squared_error", r"shape \(\).*needs \(2,\)"),
    ],
)
def test_a_stream_of_other_shapes_is_refused(inputs, targets, dtype, loss, message):
    with pytest.raises(ConfigError, match=message):
        prepare(inputs, targets, dtype, loss, num_outputs=2)


@pytest.mark.parametrize(("num_outputs", "targets"), [(1, ()), (1, (1,)), (2, (2,))])
def test_targets_of_a_regression_may_leave_out_a_single_output(num_outputs, targets):
    (case,) = prepare((40, 3), (40, *targets), float, "squared_error", num_outputs)
    assert case.problem.updates_per_task == 40

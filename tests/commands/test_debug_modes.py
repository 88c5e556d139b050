"""The programs under the flags with which one looks for a fault of one's own."""

import contextlib
import csv

import jax
import pytest
from tiny_runs import tiny_bits, tiny_digits, tiny_pairs, tiny_warm_start

from experiments import (
    continual_imagenet,
    permuted_mnist,
    slowly_changing_regression,
    warm_start,
)
from experiments.run import cases, runner
from experiments.run.config import complete

pytestmark = pytest.mark.slow

ONE = {"continual_backprop": {"method": "continual_backprop"}}
REDO = {"redo": {"method": "redo", "redo_threshold": 0.9, "redo_every": 10}}
PROBLEMS = {
    "permuted_mnist": (tiny_digits, permuted_mnist),
    "slowly_changing_regression": (tiny_bits, slowly_changing_regression),
    "continual_imagenet": (tiny_pairs, continual_imagenet),
    "warm_start": (
        lambda **fields: tiny_warm_start(num_tasks=2, start="cold", **fields),
        warm_start,
    ),
}
EACH = pytest.mark.parametrize("name", PROBLEMS)


@contextlib.contextmanager
def flags():
    with (
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


@EACH
def test_a_run_has_no_fault(name, tmp_path):
    """Some measures are not taken in the second task, and none of them of the head."""
    make_config, module = PROBLEMS[name]
    config = make_config(cases=ONE)
    if config.rank_every:
        config.rank_every = 2
    with flags():
        found = runner.run(config, tmp_path, module.make_problem)
    assert found.loss.notnull().all()
    hidden = found.sel(layer="dense_0", case="continual_backprop")
    assert hidden.effective_rank.notnull().all("seed").values.tolist() == [
        config.rank_every > 0,
        False,
    ]
    assert hidden.dead_units.notnull().all()
    assert found.dead_units.sel(layer="head").isnull().all()
    assert found.units_reset.sel(layer="head").isnull().all()
    assert found.saturated_units.isnull().all()
    assert found.gradient_norm.sel(layer="head").notnull().all()


@EACH
def test_no_tracer_leaks(name):
    make_config, module = PROBLEMS[name]
    config = complete(make_config(cases=ONE))
    with jax.checking_leaks():
        cases.prepare_cases(config, module.make_problem)


def test_a_log_without_utilities_has_no_fault(tmp_path):
    config = tiny_digits(cases=REDO, method="redo", num_tasks=1, replacement_log=9)
    with flags():
        runner.run(config, tmp_path, permuted_mnist.make_problem)
    with (tmp_path / "replacements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["utility"] for row in rows} == {"nan"}


def test_a_fault_in_a_run_is_found(tmp_path):
    config = tiny_digits(cases={"backprop": {"method": "backprop"}}, step_size=1e30)
    with flags(), pytest.raises(FloatingPointError):
        runner.run(config, tmp_path, permuted_mnist.make_problem)

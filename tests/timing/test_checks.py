"""Checks pass what is right and fail what is not."""

import json
import pathlib

import numpy as np
import pytest
import xarray as xr

from experiments.timing import checks

TRACE = pathlib.Path(__file__).parents[1] / "traces" / "mlp_sgd_relu_online.npz"


def test_the_trace_of_the_released_code_is_replayed():
    check = checks.replay_trace(TRACE)
    assert check.status == "passed"
    assert "111 replacements the same" in check.detail


@pytest.mark.parametrize("field", ["replacement_rate", "step_size"])
def test_a_trace_of_something_else_fails(field, tmp_path):
    with np.load(TRACE) as file:
        arrays = dict(file)
    trace = json.loads(str(arrays["config"]))
    trace[field] *= 1.5
    arrays["config"] = json.dumps(trace)
    np.savez(tmp_path / "other.npz", **arrays)
    check = checks.replay_trace(tmp_path / "other.npz")
    assert check.status == "FAILED"
    assert ("NOT the same" in check.detail) or field == "step_size"


def test_without_the_trace_the_check_says_that_it_is_skipped(tmp_path):
    check = checks.replay_trace(tmp_path / "trace.npz")
    assert check.status == "skipped"
    assert str(tmp_path) in check.line


def results(accuracy=0.0, loss=1.0):
    """Two seeds; one of them is off by so much."""
    return xr.Dataset(
        {
            "accuracy": ("seed", np.array([0.8, 0.8 + accuracy])),
            "loss": ("seed", np.array([2.0, 2.0 * loss])),
        }
    )


@pytest.mark.parametrize(
    ("case", "other", "status"),
    [
        ("m_short", {"loss": 1 + 5e-4}, "passed"),
        ("m_short", {"loss": 1 - 2e-3}, "FAILED"),
        ("m_short", {"loss": np.nan}, "FAILED"),
        ("m", {"loss": 1.5}, "passed"),
        ("m", {"accuracy": 0.015}, "passed"),
        ("m", {"accuracy": -0.025}, "FAILED"),
        ("m", {"accuracy": np.nan}, "FAILED"),
    ],
)
def test_short_tasks_agree_to_rounding_and_whole_ones_in_accuracy(case, other, status):
    check = checks._compare(case, results(**other), results())
    assert check.status == status


def test_a_run_on_a_cpu_that_fails_is_a_failed_check(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.runner, "run", lambda *arguments: None)
    command = ("-c", "raise SystemExit('no such device')")
    config = checks.ConfigDict({"num_seeds": 2, "lanes_per_block": 0})
    (check,) = checks.compare_with_cpu(config, None, command, tmp_path, tmp_path)
    assert check.status == "FAILED"
    assert "no such device" in check.detail

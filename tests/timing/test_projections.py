"""The projected time of an update, of made-up work on made-up devices."""

import pytest

from experiments.timing import devices
from experiments.timing.compiled_programs import Conditional, Kernel, Work
from experiments.timing.projections import Assumptions, project

GPU = devices.DEVICES["h100"]._replace(bandwidth=1e12)
TPU = devices.DEVICES["v5e"]._replace(bandwidth=1e12, clock=1e9)
ASSUMED = Assumptions(
    launch_seconds=3e-6,
    conditional_seconds=20e-6,
    bandwidth_share=0.5,
    branch_share=0.25,
)
SMALL = Kernel("small", times=2.0, bytes_moved=1000, cycles=5000)
LARGE = Kernel("large", times=1.0, bytes_moved=50_000_000, cycles=7000)
WORK = Work(
    (SMALL, LARGE),
    (Conditional("due", 1.0, (Work((SMALL,)), Work((SMALL, LARGE)))),),
)


def test_kernels_of_a_gpu_take_their_launch_or_their_bytes():
    """Small ones 3 µs each, large ones 100 µs; a quarter takes the longer branch."""
    found = project(WORK, GPU, ASSUMED)
    assert found.launches == pytest.approx(6e-6 + 6e-6)
    assert found.bandwidth == pytest.approx(100e-6 + 25e-6)
    assert found.conditionals == pytest.approx(20e-6)
    assert found.seconds == pytest.approx(157e-6)
    assert found.bound == "bandwidth"


def test_operations_of_a_tpu_take_their_cycles_and_no_launch():
    """Both take their cycles or their bytes: 5 µs, 100 µs."""
    found = project(WORK, TPU, ASSUMED)
    assert found.launches == pytest.approx(10e-6 + 10e-6)
    assert found.bandwidth == pytest.approx(125e-6)
    assert found.conditionals == 0


@pytest.mark.parametrize(
    ("field", "bound"),
    [("launch_seconds", "launches"), ("conditional_seconds", "conditionals")],
)
def test_what_takes_longest_is_what_bounds(field, bound):
    assert project(WORK, GPU, ASSUMED._replace(**{field: 1e-3})).bound == bound


def test_assumptions_are_told():
    told = str(ASSUMED)
    for part in ("3 µs", "20 µs", "50 %", "25 %"):
        assert part in told


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
        ("TPU v4", None),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    assert devices.of_kind(kind) is devices.DEVICES.get(name)

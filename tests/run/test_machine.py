"""How many cores and threads a run takes, and who may tell it otherwise."""

import os
import subprocess
import sys

from absl import flags, logging
import pytest

from experiments.run import command_line, machine

V1, V2 = "4:cpu,cpuacct:/docker/ab\n", "0::/job.slice/step_0\n"
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 8),
        (V2, {"job.slice/step_0/cpu.max": "max 100000\n"}, 8),
        (V2, {"job.slice/step_0/cpu.max": "150000 100000\n"}, 2),
        # The narrowest of the groups around counts.
        (V2, {"job.slice/cpu.max": "300000 100000", "cpu.max": "500000 100000"}, 3),
        # A container sees its own group as the outermost.
        ("0::/../../outside\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000"}, 8),
        (V2, {"unified/job.slice/cpu.max": "400000 200000"}, 2),
        (V2, {"job.slice/step_0/cpu.max": "nonsense"}, 8),
        (
            V1,
            {
                "cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        (
            "0::/\n" + V1,
            {
                "cpu/cpu.cfs_quota_us": "250000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ("7:cpuset:/\n", {"cpuset/cpu.max": "100000 100000"}, 8),
        (None, {}, 8),
    ],
)
def test_a_quota_of_cores_is_rounded_up(monkeypatch, tmp_path, groups, files, expected):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    for name, text in {
        f"{GROUPS}/{name}": text for name, text in files.items()
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    assert machine.available_cores(tmp_path) == expected


# Says how many devices there are, and how many threads LAPACK has once JAX uses it.
PROGRAM = """
import os, pathlib
import jax, threadpoolctl
from experiments.run import machine
machine.available_cores = lambda: 3
machine.use_all_cores()
jax.numpy.linalg.svd(jax.numpy.eye(3))
pools = threadpoolctl.threadpool_info()
print(len(jax.devices()), {p["num_threads"] for p in pools if p["user_api"] == "blas"})
"""
OWN = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", *machine._LAPACK_THREADS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "3 {1}"),
        (
            {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "OPENBLAS_NUM_THREADS": "2",
            },
            "2 {2}",
        ),
    ],
)
def test_the_environment_chooses_devices_and_threads(chosen, expected):
    environment = {name: text for name, text in os.environ.items() if name not in OWN}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"JAX_PLATFORMS": "cpu"} | chosen,
        cwd=machine.__file__.partition("/experiments/")[0],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert output.strip() == expected


@pytest.mark.parametrize(
    ("present", "expected"), [(0, logging.FATAL), (1, logging.INFO)]
)
def test_logs_are_hidden_unless_they_are_asked_for(monkeypatch, present, expected):
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    monkeypatch.setattr(flags.FLAGS["verbosity"], "present", present)
    command_line.quiet_logs()
    found = logging.get_verbosity()
    logging.set_verbosity(before)
    assert found == expected

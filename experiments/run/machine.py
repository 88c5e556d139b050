"""A run's use of its machine: cores, threads, memory, cache of compiled programs."""

from collections.abc import Iterator
import hashlib
import importlib
import math
import os
import pathlib
import platform
from typing import Any

import jax
import threadpoolctl
from tqdm import tqdm

from experiments.learning.checks import ConfigError

_XLA_DEVICES = "--xla_force_host_platform_device_count"
# Environment variables that set the threads of the possible LAPACK libraries.
_LAPACK_THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"),
    *("MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)
_ROOT = pathlib.Path("/")


def use_all_cores() -> None:
    """Makes each core an XLA device, since one device uses little more than one core.

    The environment variable JAX_NUM_CPU_DEVICES, or XLA_FLAGS with
    --xla_force_host_platform_device_count, sets another number. LAPACK, which computes
    ranks, gets one thread unless OPENBLAS_NUM_THREADS or the like is set: further
    threads would spin for a while on cores that devices need.
    """
    if os.environ.keys().isdisjoint(_LAPACK_THREADS):
        # JAX uses scipy's LAPACK, and the limit applies only to loaded libraries.
        importlib.import_module("scipy.linalg")
        threadpoolctl.threadpool_limits(1, user_api="blas")
    # A config file may have set the number that JAX reads from the environment.
    is_set = "JAX_NUM_CPU_DEVICES" in os.environ or jax.config.jax_num_cpu_devices >= 0
    if is_set or _XLA_DEVICES in os.environ.get("XLA_FLAGS", ""):
        return
    jax.config.update("jax_num_cpu_devices", available_cores())


def available_cores(root: pathlib.Path = _ROOT) -> int:
    """Counts the cores that this process may use, at least 1.

    These are the cores that it may be scheduled on, or fewer if a container, a batch
    system or systemd limits its CPU time: a quota of 1.5 cores is rounded up to 2.

    Args:
      root: the folder in which `proc` and `sys` are mounted.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13; honors PYTHON_CPU_COUNT.
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return max(1, math.ceil(min([cores or 1, *_quotas(root)])))


def _quotas(root: pathlib.Path) -> Iterator[float]:
    """Yields the quotas, in cores, of the control groups that the process is in.

    A group's ancestors limit it as well. A container may show its own group as the
    root, while `/proc` has the path outside the container.
    """
    place = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for inner in (group, *group.parents):
            if not controllers:  # Version 2.
                for mount in (place, place / "unified"):
                    yield from _quota(*_read(mount / inner / "cpu.max").split())
            elif "cpu" in controllers.split(","):
                for mount in (place / controllers, place / "cpu"):
                    yield from _quota(
                        _read(mount / inner / "cpu.cfs_quota_us").strip(),
                        _read(mount / inner / "cpu.cfs_period_us").strip(),
                    )


def _quota(*quota_and_period: str) -> Iterator[float]:
    """Yields the quota, if any; without one, version 1 has -1 and version 2 "max"."""
    try:
        quota, period = map(int, quota_and_period)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


COMPILED_FOLDER = ".compiled"
"""Folder of compiled programs, next to run folders; it may be deleted."""

# Programs that compile faster than this are not worth a file.
_LEAST_SECONDS = 0.3
_SECONDS_FIELD = "jax_persistent_cache_min_compile_time_secs"


def keep_compiled_programs(folder: pathlib.Path) -> None:
    """Makes JAX cache the compiled programs of a run next to its folder.

    JAX's own settings, JAX_COMPILATION_CACHE_DIR and
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, take precedence.

    Args:
      folder: the run folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        place = folder.absolute().parent / COMPILED_FOLDER / _processor()
        jax.config.update("jax_compilation_cache_dir", str(place))
        if _SECONDS_FIELD.upper() not in os.environ:
            jax.config.update(_SECONDS_FIELD, _LEAST_SECONDS)


def _processor() -> str:
    """Identifies the kind of CPU, since a program may fail or be slow on another.

    JAX's cache distinguishes kinds of accelerators, but not of CPUs.
    """
    described = f"{platform.machine()} {platform.processor()}"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first, _, _ = cpuinfo.read_text().partition("\n\n")
        features = ("vendor_id", "model name", "flags", "Features", "CPU part")
        described += "".join(
            line for line in first.splitlines() if line.startswith(features)
        )
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def device_limit() -> float:
    """Returns the memory of a device of this process, in bytes; infinity if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", math.inf)
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bytes_needed(program: jax.stages.Compiled) -> int:
    """Returns the bytes that a program needs on each device, arguments included."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def check_fits(case: str, config: Any, state: Any, num_lanes: int) -> None:
    """Raises ConfigError if the states of all lanes do not fit in memory.

    Args:
      case: name of the case.
      config: the case's config.
      state: state of one lane, a pytree of `jax.ShapeDtypeStruct`.
      num_lanes: number of lanes of the case.
    """
    lane = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    # The devices of a CPU share its memory; each accelerator has its own.
    devices = jax.devices()
    limit = device_limit() * (1 if devices[0].platform == "cpu" else len(devices))
    if lane * num_lanes <= limit:
        return
    remedies = ["config.hidden_units"]
    if config.replacement_log:
        remedies.append("config.replacement_log")
    if lane <= limit:
        remedies += ["config.num_seeds", "the values of config.sweep"]
    each, together, there = (
        tqdm.format_sizeof(size, suffix="B") for size in (lane, lane * num_lanes, limit)
    )
    raise ConfigError(
        f"Case {case!r} needs at least {each} of memory for each of its {num_lanes} "
        f"lanes, {together} in all, but this machine has {there}: lower "
        f"{' or '.join(remedies)}."
    )

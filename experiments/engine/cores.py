"""How many cores this process may use."""

from collections.abc import Iterator
import math
import os
import pathlib

_ROOT = pathlib.Path("/")


def available_cores(root: pathlib.Path = _ROOT) -> int:
    """Counts the cores that this process may use, at least 1.

    They are those that it may be scheduled on, or fewer where a container, a batch
    system or systemd grants it less time than they have: a quota of 1.5 cores is
    rounded up to 2.

    Args:
      root: where `proc` and `sys` are mounted.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13; heeds PYTHON_CPU_COUNT.
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return max(1, math.ceil(min([cores or 1, *_quotas(root)])))


def _quotas(root: pathlib.Path) -> Iterator[float]:
    """Finds the quotas, in cores, of the control groups that the process is in.

    Those around a group limit it as well. A container may show its own group as the
    outermost, while `/proc` tells the path that it has outside.
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
    """Yields the quota, if there is one: version 1 says -1 for none, version 2 max."""
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

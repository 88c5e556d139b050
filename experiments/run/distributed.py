"""Connects the processes of one run, and lets them agree on values."""

from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def start(address: str | None, count: int | None, index: int | None) -> None:
    """Connects this process to the others of the run, before JAX uses any device.

    Args:
      address: `host:port` of process 0.
      count: number of processes.
      index: index of this process. If all three are None, JAX finds them on clusters
        that it supports (SLURM, TPU, Open MPI).

    Raises:
      ValueError, RuntimeError: they are neither given nor found, or no process answers.
    """
    jax.distributed.initialize(address, count, index)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process gets here; `name` identifies the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first(number: int) -> int:
    """Returns the number of the first process; every process must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number)))


def gather(tree: Any) -> Any:
    """Fetches arrays sharded over all devices of all processes as NumPy arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)

"""Several processes of one run: who they are, and what they must agree on."""

from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def start(address: str | None, count: int | None, index: int | None) -> None:
    """Joins this process to the others of the run, before JAX touches any device.

    Args:
      address: `host:port` of process 0.
      count: number of processes.
      index: number of this one. Where all three are None, JAX finds them on a cluster
        that it knows (SLURM, TPU, Open MPI).

    Raises:
      ValueError, RuntimeError: they are neither given nor found, or nobody answers.
    """
    jax.distributed.initialize(address, count, index)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process is here; `name` tells places apart."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first(number: int) -> int:
    """Returns the number that the first process has; all must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number)))


def gather(tree: Any) -> Any:
    """Fetches arrays spread over all devices of all processes as NumPy arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)

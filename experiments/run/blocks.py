"""Chooses how many lanes a device vmaps together.

On a CPU, a wide vmap of small matrix products is often slower than a loop over lanes,
but sometimes many times faster, so it is measured. An accelerator takes all lanes that
fit.
"""

from collections.abc import Callable
import math
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from experiments.learning.problem import Problem
from experiments.run import distributed, machine
from experiments.run.cases import Case, CompiledCase
from experiments.run.config import Lane, LaneGrid
from experiments.run.messages import say

_CANDIDATES = (1, 8, 64)
_UPDATES_WORTH_MEASURING = 20_000_000
_MEMORY_FRACTION = 0.9


def choose_block(case: Case, make_problem: Callable[[Any], Problem]) -> int:
    """Chooses the lanes per block for a case on this machine, and prints a measurement.

    Args:
      case: the case. A `config.lanes_per_block` other than 0 decides.
      make_problem: builds the problem of the short task that is timed.

    Returns:
      Lanes per block and device, at least 1.
    """
    per_device = math.ceil(case.num_lanes / len(jax.devices()))
    if case.config.lanes_per_block:
        return min(case.config.lanes_per_block, per_device)
    if jax.default_backend() != "cpu":
        limit = machine.device_limit()
        return fit_block(
            lambda block: CompiledCase(case, block).memory_needed(), per_device, limit
        )
    updates = case.updates_per_task_all_lanes * case.config.num_tasks
    if per_device == 1 or updates < _UPDATES_WORTH_MEASURING:
        return 1
    candidates = sorted({*(n for n in _CANDIDATES if n < per_device), per_device})
    rates = {
        block: _updates_per_second(case, make_problem, block) for block in candidates
    }
    best = max(rates, key=rates.get)
    if distributed.is_first():
        measured = ", ".join(f"{rate:,.0f} ({block})" for block, rate in rates.items())
        say(
            f"{case.name}: updates per second (lanes per block): {measured}; taking "
            f"{best}. --config.lanes_per_block={best} skips this measurement.",
            sys.stdout,
        )
    return best


def fit_block(
    memory_needed: Callable[[int], int], per_device: int, limit: float
) -> int:
    """Finds the largest of N, N/2, N/4 ... lanes per block that fits in memory.

    Args:
      memory_needed: maps lanes per block to bytes on a device.
      per_device: N, the lanes of a device.
      limit: memory of a device, in bytes.

    Returns:
      Lanes per block; 1 if none fits, and then the run fails with JAX's own message.
    """
    block = per_device
    while block > 1 and memory_needed(block) > _MEMORY_FRACTION * limit:
        block = math.ceil(block / 2)
    return block


def _updates_per_second(
    case: Case, make_problem: Callable[[Any], Problem], block: int
) -> float:
    """Times a short task of a case, with one block of lanes on each device."""
    config = ConfigDict(case.config.to_dict())
    config.update(config.timed_task)
    lanes = min(case.num_lanes, block * len(jax.devices()))
    grid = LaneGrid(
        Lane(*jax.tree.map(lambda leaf: leaf[:lanes], tuple(case.grid.lanes))),
        {"seed": np.arange(lanes)},
    )
    short = Case(case.name, config, grid, make_problem(config))
    compiled = CompiledCase(short, block)
    state, *_ = compiled.run_task(compiled.start(None), 0)
    start = time.perf_counter()
    compiled.run_task(state, 1)
    return short.updates_per_task_all_lanes / (time.perf_counter() - start)

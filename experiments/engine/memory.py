"""How much memory there is, and whether the lanes of a case can fit into it."""

import math
import os
from typing import Any

import jax
from tqdm import tqdm

from experiments.learning.checks import ConfigError


def device_limit() -> float:
    """Returns the bytes that a device of this process has, infinity if unknown."""
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
    """Raises ConfigError if the states of all lanes are larger than the memory.

    Args:
      case: name of the case.
      config: the case's config.
      state: of one lane, a pytree of `jax.ShapeDtypeStruct`.
      num_lanes: of the case.
    """
    lane = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    # The devices of a CPU share its memory; each accelerator has its own.
    devices = jax.devices()
    limit = device_limit() * (1 if devices[0].platform == "cpu" else len(devices))
    if lane * num_lanes <= limit:
        return
    cures = ["config.hidden_units"]
    if config.replacement_log:
        cures.append("config.replacement_log")
    if lane <= limit:
        cures += ["config.num_seeds", "the values of config.sweep"]
    each, together, there = (
        tqdm.format_sizeof(size, suffix="B") for size in (lane, lane * num_lanes, limit)
    )
    raise ConfigError(
        f"Case {case!r} needs at least {each} of memory for each of its {num_lanes} "
        f"lanes, {together} in all, but this machine has {there}: lower "
        f"{' or '.join(cures)}."
    )

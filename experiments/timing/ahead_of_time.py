"""Compiles the tasks of a run for accelerators that need not be present.

XLA needs a description of the device and the compiler for it, but no device. For a GPU,
it then chooses kernels without timing them, as with `--xla_gpu_autotune_level=0`.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
import importlib.util
import math
import os
import time
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.run import machine
from experiments.run.cases import Case, lower_task
from experiments.timing import compiled_programs
from experiments.timing.compiled_programs import Work
from experiments.timing.devices import Device

# The packages that each platform's compiler needs, by the modules that they install.
_PACKAGES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cuda": {
            "jax_cuda13_plugin": "'jax[cuda13-local]=={version}'",
            "nvidia.cu13.bin": "nvidia-cuda-nvcc",
        },
        "tpu": {"libtpu": "'jax[tpu]=={version}'"},
    }
)

# Without these, libtpu queries the TPU that it runs on, prints errors if there is none,
# and locks out other processes meanwhile.
_LIBTPU_ENVIRONMENT = MappingProxyType(
    {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
)

MEMORY_SHARE = 0.9
"""Fraction of a device's memory that lanes may use, as in a run."""

_GPU_SHARE = 0.75  # Fraction of a GPU's memory that JAX allocates by default.


class CompiledTask(NamedTuple):
    """A compiled task.

    Attributes:
      work: work of one update of all lanes.
      memory_bytes: memory needed on each device.
      lane_bytes: memory that each lane adds to that.
      lanes_that_fit: number of lanes that fit on a device.
      compile_seconds: wall time of the compilation.
      collectives: instructions that synchronize devices.
      text: HLO text of the program.
    """

    work: Work
    memory_bytes: int
    lane_bytes: float
    lanes_that_fit: int
    compile_seconds: float
    collectives: list[str]
    text: str


def check_installed(device: Device) -> None:
    """Raises ImportError, with the remedy, unless the right compiler is installed."""
    version = metadata.version("jaxlib")
    packages = _PACKAGES[device.platform]
    lacking = [package for name, package in packages.items() if not _has_module(name)]
    if device.platform == "cuda" and not lacking:
        found = metadata.version("jax-cuda13-plugin")
        if found != version:
            lacking = [packages["jax_cuda13_plugin"]]
    if lacking:
        raise ImportError(
            f"The compiler for {device.kind} is not installed for jaxlib {version}: "
            f"run pip install {' '.join(lacking).format(version=version)}"
        )


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def describe(device: Device, number: int = 1) -> Sequence[Any]:
    """Returns descriptions of devices that JAX can compile for.

    Args:
      device: the kind of accelerator.
      number: number of devices; at most 4 for a TPU, those of one host.

    Raises:
      ImportError: a package is missing.
      ValueError: the number is too large.
    """
    check_installed(device)
    if device.platform == "tpu":
        for name, value in _LIBTPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        topology = topologies.get_topology_desc(f"{device.target}:2x2", "tpu")
    else:
        shape = f"1x1x{number}"
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=shape,
            topology=shape,
            target_config=device.target,
        )
    if number > len(topology.devices):
        raise ValueError(
            f"--devices={number} is too many for {device.kind}: choose at most "
            f"{len(topology.devices)}."
        )
    return topology.devices[:number]


def compile_task(
    case: Case, device: Device, devices: Sequence[Any], block: int = 0
) -> CompiledTask:
    """Compiles the task of a case.

    Args:
      case: the case.
      device: the kind of accelerator.
      devices: the devices, from `describe`.
      block: lanes that a device vmaps together, 0 for all of its lanes.
    """
    began = time.perf_counter()
    compiled = lower_task(case, devices, block).compile()
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    per_device = math.ceil(case.num_lanes / len(devices))
    work = compiled_programs.update_work(text, case.problem.updates_per_task)
    memory = machine.bytes_needed(compiled)
    shared = sum(leaf.nbytes for leaf in jax.tree.leaves(case.problem.data))
    lane_bytes = max(memory - shared, 1) / min(block or per_device, per_device)
    limit = MEMORY_SHARE * device.memory_bytes
    if device.platform == "cuda":
        limit *= _GPU_SHARE
    return CompiledTask(
        work,
        memory,
        lane_bytes,
        max(0, math.floor((limit - shared) / lane_bytes)),
        seconds,
        compiled_programs.collectives(text),
        text,
    )


def compile_to_fit(case: Case, device: Device, devices: Sequence[Any]) -> CompiledTask:
    """Compiles the task of a case as a run on the accelerator would.

    All lanes of a device are vmapped together, unless they do not fit or the config
    sets a number; then they run in blocks.
    """
    block = case.config.lanes_per_block
    task = compile_task(case, device, devices, block)
    per_device = math.ceil(case.num_lanes / len(devices))
    if not block and 0 < task.lanes_that_fit < per_device:
        blocks = math.ceil(per_device / task.lanes_that_fit)
        block = math.ceil(per_device / blocks)
        task = compile_task(case, device, devices, block)
    return task

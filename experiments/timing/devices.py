"""Accelerators that programs can be compiled for without having one.

Sources, as of November 2026:

* GPUs: XLA describes those on which it is tested in
  `xla/backends/gpu/target_config/specs/*.txtpb` of github.com/openxla/xla (`h100_sxm`,
  `a100_sxm_80`, `h200`, `b200`). The compute capability, cores, caches, clock, memory
  and bandwidth are from there.
* TPUs: cloud.google.com/tpu/docs/v6e has the memory and bandwidth of both. The clocks,
  which convert the compiler's cycles to seconds, are not published. They are inferred
  from the peaks in bfloat16: the 197 TFLOP/s of a v5e are four matrix units of 128 x
  128 at 1.5 GHz, and the 918 TFLOP/s of a v6e are four of 256 x 256 at 1.75 GHz.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Device(NamedTuple):
    """An accelerator.

    Attributes:
      kind: part of its name in JAX, `jax.Device.device_kind`.
      platform: "cuda" or "tpu".
      memory_bytes: size of its main memory.
      bandwidth: bandwidth of this memory, in bytes per second.
      clock: clock rate of its cores, in Hz.
      target: the text proto `GpuTargetConfigProto` of a GPU, or the name of a TPU's
        generation.
    """

    kind: str
    platform: str
    memory_bytes: int
    bandwidth: float
    clock: float
    target: str


def of_kind(kind: str) -> Device | None:
    """Returns the accelerator with this name in JAX; None if it is unknown."""
    matching = [device for device in DEVICES.values() if device.kind in kind]
    return max(matching, key=lambda device: len(device.kind), default=None)


_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} feature_extension: {features} }}
  core_count: {cores}
  fpus_per_core: {fpus}
  clock_rate_ghz: {gigahertz}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  shared_memory_per_core: {shared_per_core}
  shared_memory_per_block_optin: {shared_per_block}
  shared_memory_per_block: 49152
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  runtime_version: "12.8.0"
  driver_version: "13.0.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def _gpu(kind: str, name: str, **numbers: float | str) -> Device:
    return Device(
        kind,
        "cuda",
        numbers["memory"],
        numbers["bandwidth"],
        1e9 * numbers["gigahertz"],
        _TARGET.format(name=name, **numbers),
    )


_HOPPER = {
    "major": 9,
    "features": "ACCELERATED_FEATURES",
    "cores": 132,
    "fpus": 128,
    "gigahertz": 1.98,
    "l2_cache": 52_428_800,
    "shared_per_core": 233_472,
    "shared_per_block": 232_448,
}

DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "a100": _gpu(
            "A100",
            "NVIDIA A100-SXM4-80GB",
            major=8,
            features="NONE",
            cores=108,
            fpus=64,
            gigahertz=1.41,
            memory=85_100_068_864,
            bandwidth=2_039_040_000_000,
            l2_cache=41_943_040,
            shared_per_core=167_936,
            shared_per_block=166_912,
        ),
        "h100": _gpu(
            "H100",
            "NVIDIA H100 80GB HBM3",
            memory=84_942_979_072,
            bandwidth=3_352_320_000_000,
            **_HOPPER,
        ),
        "h200": _gpu(
            "H200",
            "NVIDIA H200",
            memory=151_397_597_184,
            bandwidth=4_800_000_000_000,
            **_HOPPER,
        ),
        "b200": _gpu(
            "B200",
            "NVIDIA B200",
            memory=191_514_411_008,
            bandwidth=7_672_320_000_000,
            **_HOPPER
            | {"major": 10, "cores": 148, "gigahertz": 1.965, "l2_cache": 132_644_864},
        ),
        "v5e": Device("TPU v5 lite", "tpu", 16 * 2**30, 819e9, 1.5e9, "v5e"),
        "v6e": Device("TPU v6 lite", "tpu", 32 * 2**30, 1640e9, 1.75e9, "v6e"),
    }
)
"""Accelerators, by their name in `--compile_for`."""

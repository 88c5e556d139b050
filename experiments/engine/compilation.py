"""Keeps compiled programs, so that a second start of a run is quick."""

import hashlib
import os
import pathlib
import platform

import jax

COMPILED_FOLDER = ".compiled"
"""Folder beside run folders that holds compiled programs; it may be deleted."""

# Programs that take less to compile are not worth a file.
_LEAST_SECONDS = 0.3
_SECONDS_FIELD = "jax_persistent_cache_min_compile_time_secs"


def keep_compiled_programs(folder: pathlib.Path) -> None:
    """Lets JAX keep the programs of a run beside its folder, and look for them there.

    What JAX itself is told, by JAX_COMPILATION_CACHE_DIR and
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, goes first.

    Args:
      folder: the run folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        place = folder.absolute().parent / COMPILED_FOLDER / _processor()
        jax.config.update("jax_compilation_cache_dir", str(place))
        if _SECONDS_FIELD.upper() not in os.environ:
            jax.config.update(_SECONDS_FIELD, _LEAST_SECONDS)


def _processor() -> str:
    """Names the kind of processor: a program may not run on another, or badly.

    JAX tells the kinds of accelerators apart, but not those of processors.
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

"""What changes the numbers of a run although it stands in no config.

Not in it is what changes no more than rounding: the machine, the number of devices, and
how a compiler orders its sums.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from experiments.learning.keys import PRNG_IMPL

# Settings of JAX, and what they are where nobody has set them.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "jax_enable_x64": False,
        "jax_threefry_partitionable": True,
        "jax_random_seed_offset": 0,
        "jax_default_matmul_precision": None,
    }
)


def environment() -> dict[str, Any]:
    """Returns the generator of random numbers, and JAX's settings that matter.

    Its values are what JSON has. JAX's default generator does not matter, because all
    keys of experiments are of the one named here.
    """
    settings = {
        name: getattr(jax.config, name, default) for name, default in _DEFAULTS.items()
    }
    return {"prng_impl": PRNG_IMPL} | settings


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[str]:
    """Says why a run cannot go on in another environment, a line for each setting.

    Args:
      old: the environment that the run was begun in; None for a run of a version that
        did not record it, which can go on where nobody has set anything.
      new: the environment here.
    """
    known = {"prng_impl": PRNG_IMPL} | _DEFAULTS | (old or {})
    lines = []
    for name, after in new.items():
        before = known.get(name)
        if before == after:
            continue
        line = f"{name}: {before} -> {after}"
        if old is None or name not in old:
            line = f"{name}: (not recorded) -> {after}"
        lines.append(f"{line}, which changes all numbers; {_cure(name, before)}")
    return lines


def _cure(name: str, before: Any) -> str:
    if name not in _DEFAULTS:
        return "go on with the version of cbp_jax that began the run"
    if before is None:
        return f"unset {name.upper()} to go on"
    return f"set {name.upper()}={before} to go on"

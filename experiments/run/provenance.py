"""Records what determines the numbers of a run, and reports when it changes.

That is its config, the code, the random number generator and some settings of JAX. A
run folder has one record for each version of the code that continued the run. What only
changes rounding is not recorded: the machine, the number of devices, and how a compiler
orders sums.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import platform
import re
import subprocess
from types import MappingProxyType
from typing import Any

import jax
from ml_collections import ConfigDict

import cbp_jax
from experiments.learning.keys import PRNG_IMPL

VERSION_FIELD = "cbp_jax"
"""The field of a written config with the version; it also shows that a run wrote it."""

_NUMERICS_FIELD = "numerics"  # Field of a written config; see `environment`.

NOT_OF_A_CONFIG = (VERSION_FIELD, _NUMERICS_FIELD)
"""Fields of a written config that are no fields of the config."""

# Fields that change how a run is carried out, but not its results.
_NOT_RESULTS = (
    *("checkpoint_every", "checkpoint_seconds", "lanes_per_block", "timed_task"),
    *("tensorboard", "wandb", "tasks_per_bin"),
    "probe",  # The name of `timed_task` in earlier versions.
)
# Each task is determined by the key and its number, so a run can be made longer.
_NUM_TASKS = re.compile(r"(cases\..+\.)?num_tasks")

CODE_FILE = "code.json"

Code = dict[str, Any]
"""A record: versions of `cbp_jax`, `jax`, `jaxlib` and `python`; the git `commit`, or
None, and whether files differ from it (`dirty`); `files`, the hash of each source file
by name; and `sources`, a hash of `files`."""

UNKNOWN = "unknown"
"""The hash of sources that were not recorded."""

# The code that computes numbers; the rest of the experiments runs, saves and draws.
_EXPERIMENTS = pathlib.Path(__file__).parents[1]
_COMPUTING = (
    *("learning", "streams"),
    *("run/config.py", "run/search.py", "run/cases.py", "run/lanes.py"),
    "reporting/scales.py",  # The values of a search.
)

# Settings of JAX, and their defaults.
_JAX_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "jax_enable_x64": False,
        "jax_threefry_partitionable": True,
        "jax_random_seed_offset": 0,
        "jax_default_matmul_precision": None,
    }
)


def to_json(config: ConfigDict) -> str:
    """Writes a config, the package's version and what else the numbers depend on."""
    fields = {
        VERSION_FIELD: cbp_jax.__version__,
        _NUMERICS_FIELD: environment(),
    }
    return json.dumps(fields | config.to_dict(), indent=2, default=list)


def config_differences(old: str, new: str) -> list[str]:
    """Says why a run of the new config cannot continue one of the old.

    Args:
      old: written by `to_json`.
      new: written by `to_json`.

    Returns:
      One line for each field that differs, except for those that do not change results:
      how a run is carried out, and a larger number of tasks. One line for each JAX
      setting that differs and changes numbers.
    """
    old_config, new_config = json.loads(old), json.loads(new)
    found = _environment_differences(
        old_config.pop(_NUMERICS_FIELD, None), new_config.pop(_NUMERICS_FIELD, {})
    )
    old_fields, new_fields = map(dict, map(_flatten, (old_config, new_config)))
    for fields in (old_fields, new_fields):
        if not any("search" in name.split(".") for name in fields):
            fields.pop("num_trials", None)  # It has no effect.
    missing = "(not there)"
    for name in (*old_fields, *(new_fields.keys() - old_fields.keys())):
        before, after = old_fields.get(name, missing), new_fields.get(name, missing)
        if before == after or name.partition(".")[0] in _NOT_RESULTS:
            continue
        line = f"{name}: {before} -> {after}"
        if _NUM_TASKS.fullmatch(name) and isinstance(before, int):
            if isinstance(after, int) and after > before:
                continue
            line += " (a run can be made longer, not shorter)"
        found.append(line)
    return found


def environment() -> dict[str, Any]:
    """Returns the random number generator and the JAX settings that change numbers.

    The values are those that JSON can represent. JAX's default generator does not
    matter, because all keys of experiments use the one named here.
    """
    settings = {
        name: getattr(jax.config, name, default)
        for name, default in _JAX_DEFAULTS.items()
    }
    return {"prng_impl": PRNG_IMPL} | settings


def current_code(make_problem: Callable[..., Any]) -> Code:
    """Describes the code that is running.

    Args:
      make_problem: that of the run; its file is part of the sources.
    """
    files = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(_sources(make_problem))
    }
    sources = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    commit, is_dirty = _git_state(_EXPERIMENTS.parent)
    return {
        "cbp_jax": cbp_jax.__version__,
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "python": platform.python_version(),
        "commit": commit,
        "dirty": is_dirty,
        "sources": sources,
        "files": files,
    }


def unrecorded_code(version: str) -> Code:
    """Describes the code of a run that recorded only its version."""
    return {"cbp_jax": version, "commit": None, "sources": UNKNOWN, "files": {}}


def read_codes(folder: pathlib.Path) -> list[Code]:
    """Reads the records of a run folder, oldest first; [] if there are none.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / CODE_FILE
    if not path.exists():
        return []
    try:
        codes = json.loads(path.read_text())
        if not all(isinstance(code["files"], dict) for code in codes):
            raise ValueError("no records of code")
        return codes
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Restore it from a backup, or delete it: the "
            "run then continues as one whose first code is unknown."
        ) from error


def write_codes(folder: pathlib.Path, codes: Sequence[Code]) -> None:
    """Writes the records of a run folder."""
    temporary = folder / f".{CODE_FILE}"
    temporary.write_text(json.dumps(codes, indent=1))
    os.replace(temporary, folder / CODE_FILE)


def add_code(codes: Sequence[Code], code: Code) -> list[Code]:
    """Adds a record, unless it only differs from the last one in the commit."""
    compared = ("cbp_jax", "jax", "jaxlib", "sources")
    last = codes[-1] if codes else {}
    if all(last.get(name) == code[name] for name in compared):
        return list(codes)
    return [*codes, code]


def code_differences(old: Code, new: Code) -> list[str]:
    """Says how the sources of two records differ; [] if equal or unknown."""
    from experiments.reporting.run_results import describe_code

    if UNKNOWN in (old["sources"], new["sources"]) or old["sources"] == new["sources"]:
        return []
    before, after = old["files"], new["files"]
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    )
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return [
        f"then: {describe_code(old)}",
        f"now: {describe_code(new)}",
        f"changed: {', '.join(changed[:5])}{more}",
    ]


def as_attribute(codes: Sequence[Code]) -> str:
    """Writes records as JSON, without the hashes of the files."""
    return json.dumps(
        [
            {name: value for name, value in code.items() if name != "files"}
            for code in codes
        ]
    )


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        elif prefix in ("sweep.", "search.") and not value:
            continue  # An empty entry means the same as a missing one.
        else:
            yield f"{prefix}{name}", value


def _environment_differences(
    old: Mapping[str, Any] | None, new: Mapping[str, Any]
) -> list[str]:
    """Says why a run cannot continue in another environment, one line per setting.

    Args:
      old: the environment in which the run started; None for a run of a version that
        did not record it, which can continue with default settings.
      new: the current environment.
    """
    known = {"prng_impl": PRNG_IMPL} | _JAX_DEFAULTS | (old or {})
    lines = []
    for name, after in new.items():
        before = known.get(name)
        if before == after:
            continue
        line = f"{name}: {before} -> {after}"
        if old is None or name not in old:
            line = f"{name}: (not recorded) -> {after}"
        lines.append(f"{line}, which changes all numbers; {_remedy(name, before)}")
    return lines


def _remedy(name: str, before: Any) -> str:
    if name not in _JAX_DEFAULTS:
        return "continue with the version of cbp_jax that started the run"
    if before is None:
        return f"unset {name.upper()} to continue"
    return f"set {name.upper()}={before} to continue"


def _sources(
    make_problem: Callable[..., Any],
) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields the files that compute numbers, with names independent of the folder."""
    package = pathlib.Path(cbp_jax.__file__).parent
    for root, parts in ((package, ("",)), (_EXPERIMENTS, _COMPUTING)):
        for part in parts:
            path = root / part
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                yield file.relative_to(root.parent).as_posix(), file
    try:
        problem = pathlib.Path(inspect.getsourcefile(inspect.unwrap(make_problem)))
    except TypeError:  # It is not a plain function.
        return
    if problem.is_file():
        yield f"{_EXPERIMENTS.name}/{problem.name}", problem


def _git_state(root: pathlib.Path) -> tuple[str | None, bool | None]:
    """Returns the commit of a checkout and whether its files differ from it.

    An installed package may be inside another project's checkout, so only a checkout
    whose root is `root` counts.
    """
    if not (root / ".git").exists():
        return None, None
    command = ("status", "--porcelain=v2", "--branch", "--untracked-files=no")
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if "branch.oid" in line), None)
    return commit, any(not line.startswith("#") for line in lines)

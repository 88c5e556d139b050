"""The code that computes the numbers of a run: recorded, and told when it changes.

A run folder keeps one record for each code that has gone on with the run. What else
decides numbers and is no field of the config belongs here, too.
"""

from collections.abc import Callable, Iterator, Sequence
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import cbp_jax
from experiments.reporting.run_results import describe_code

CODE_FILE = "code.json"

Code = dict[str, Any]
"""A record: versions of `cbp_jax`, `jax`, `jaxlib` and `python`; the git `commit`, None
if there is none, and whether files differ from it (`dirty`); `sources`, a hash of the
`files`, which are those of the table with a hash of each."""

UNKNOWN = "unknown"
"""The hash of sources that were not recorded."""

# What computes numbers; the rest of the experiments carries out, saves and draws.
_EXPERIMENTS = pathlib.Path(__file__).parents[1]
_COMPUTING = (
    *("learning", "streams"),
    *("engine/cases.py", "engine/lanes.py"),
)


def current_code(make_problem: Callable[..., Any]) -> Code:
    """Describes the code that is running.

    Args:
      make_problem: of the run; its file is part of the sources.
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
    """Describes the code of a run that has kept no record of it, but its version."""
    return {"cbp_jax": version, "commit": None, "sources": UNKNOWN, "files": {}}


def read_codes(folder: pathlib.Path) -> list[Code]:
    """Reads the records of a run folder, the last one last; [] if there are none.

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
            f"{path} is damaged: {error}. Put it back from a copy, or delete it: the "
            "run then goes on as one whose first code is unknown."
        ) from error


def write_codes(folder: pathlib.Path, codes: Sequence[Code]) -> None:
    """Writes the records of a run folder."""
    temporary = folder / f".{CODE_FILE}"
    temporary.write_text(json.dumps(codes, indent=1))
    os.replace(temporary, folder / CODE_FILE)


def add_code(codes: Sequence[Code], code: Code) -> list[Code]:
    """Adds a record, if anything but the commit has changed since the last one."""
    told_apart = ("cbp_jax", "jax", "jaxlib", "sources")
    last = codes[-1] if codes else {}
    if all(last.get(name) == code[name] for name in told_apart):
        return list(codes)
    return [*codes, code]


def differences(old: Code, new: Code) -> list[str]:
    """Says how the sources of two records differ; [] if they do not, or are unknown."""
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
    """Writes records in JSON, without the single files."""
    return json.dumps(
        [
            {name: value for name, value in code.items() if name != "files"}
            for code in codes
        ]
    )


def _sources(
    make_problem: Callable[..., Any],
) -> Iterator[tuple[str, pathlib.Path]]:
    """Goes through the files that compute numbers, with names that do not move."""
    package = pathlib.Path(cbp_jax.__file__).parent
    for root, parts in ((package, ("",)), (_EXPERIMENTS, _COMPUTING)):
        for part in parts:
            path = root / part
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                yield file.relative_to(root.parent).as_posix(), file
    try:
        problem = pathlib.Path(inspect.getsourcefile(inspect.unwrap(make_problem)))
    except TypeError:  # It is no plain function.
        return
    if problem.is_file():
        yield f"{_EXPERIMENTS.name}/{problem.name}", problem


def _git_state(root: pathlib.Path) -> tuple[str | None, bool | None]:
    """Returns the commit of a checkout and whether its files differ from it.

    An installed package may lie inside another project's checkout, so only one that
    begins at `root` counts.
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

"""The folder of one run, which contains nothing else, and the lock on it."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
from typing import TextIO

from experiments.reporting import files
from experiments.run import provenance
from experiments.run.hooks import TENSORBOARD_FOLDER
from experiments.run.profiles import PROFILE_FOLDER
from experiments.run.provenance import CODE_FILE, VERSION_FIELD
from experiments.run.storage import CHECKPOINTS_FOLDER, RECORDS_FILE

CONFIG_FILE = "config.json"
LOCK_FILE = "run.lock"


class RunFolderError(ValueError):
    """A run folder that contains something else; the message says what to do."""


@contextlib.contextmanager
def open_folder(
    folder: pathlib.Path,
    config: str,
    overwrite: bool,
    code: provenance.Code | None = None,
    allow_changed_code: bool = False,
) -> Iterator[None]:
    """Prepares a run folder, and locks other runs out of it inside the context.

    The folder may be new, empty, or that of the same run or a shorter one.

    Args:
      folder: the run folder.
      config: the run's config, from `provenance.to_json`.
      overwrite: delete the run in the folder.
      code: the code that computes the run, from `provenance.current_code`.
      allow_changed_code: continue a run of other code, or of another version.

    Raises:
      RunFolderError: the folder contains a run of another config or code, a run that
        is still going, or something else; or, with `overwrite`, a file that no run
        wrote.
      OSError: the folder cannot be written.
    """
    _check_contents(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder))
        except LockedError as error:
            raise RunFolderError(str(error)) from error
        path = folder / CONFIG_FILE
        # Another run may have started and ended since the first check.
        holds_run = _check_contents(folder)
        if holds_run and overwrite:
            _delete_run(folder)
        elif holds_run:
            _check_config(folder, path.read_text(), config, allow_changed_code)
        if code is not None:
            goes_on = holds_run and not overwrite
            _record_code(folder, goes_on, code, allow_changed_code)
        temporary = folder / f".{CONFIG_FILE}"
        temporary.write_text(config)
        os.replace(temporary, path)
        yield


def _check_config(
    folder: pathlib.Path, old: str, new: str, allow_other_version: bool
) -> None:
    """Raises RunFolderError unless a run of the new config can continue the old."""
    changed = provenance.config_differences(old, new)
    if allow_other_version:
        is_version = f"{VERSION_FIELD}: "
        changed = [line for line in changed if not line.startswith(is_version)]
    if changed:
        raise RunFolderError(
            f"{folder} contains a run with another config or other JAX settings:\n  "
            + "\n  ".join(changed)
            + "\nPass another --workdir, or --overwrite to delete that run."
        )


def _record_code(
    folder: pathlib.Path, goes_on: bool, code: provenance.Code, allow_changed: bool
) -> None:
    """Records the code that computes the run from now on; see `open_folder`."""
    codes = []
    if goes_on:
        config = json.loads((folder / CONFIG_FILE).read_text())
        try:
            codes = provenance.read_codes(folder)
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        codes = codes or [provenance.unrecorded_code(config[VERSION_FIELD])]
        changed = provenance.code_differences(codes[-1], code)
        if changed and not allow_changed:
            raise RunFolderError(
                f"{folder} contains a run of other code, which may compute other "
                "numbers:\n  "
                + "\n  ".join(changed)
                + "\nContinue with the earlier code; or pass --allow_changed_code to "
                "continue with this code (the results will name both), --overwrite to "
                "delete that run, or another --workdir."
            )
    provenance.write_codes(folder, provenance.add_code(codes, code))


def _check_contents(folder: pathlib.Path) -> bool:
    """Whether the folder contains a run; raises RunFolderError for anything else."""
    path = folder / CONFIG_FILE
    if path.is_file():
        _check_is_ours(path)
        return True
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; pass another --workdir.")
    # A run that was killed right after its start leaves only these.
    begun = {LOCK_FILE, CODE_FILE, f".{CODE_FILE}", f".{CONFIG_FILE}"}
    if folder.is_dir() and any(entry.name not in begun for entry in folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and contains no run; pass another --workdir."
        )
    return False


def _check_is_ours(path: pathlib.Path) -> None:
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged, or is not the config of a run: {error}. Pass another "
            "--workdir. If a run did write it, restore it from a backup, or delete "
            f"{path.parent}."
        ) from error
    if not (isinstance(fields, dict) and VERSION_FIELD in fields):
        raise RunFolderError(
            f"{path} is not the config of a run; pass another --workdir."
        )


def _delete_run(folder: pathlib.Path) -> None:
    """Deletes what runs wrote, except the lock and the config.

    The config stays, so that a folder whose deletion was interrupted is still
    recognized as a run folder. The next run overwrites it.

    Raises:
      RunFolderError: there are other files, or symbolic links.
    """
    if folder.is_symlink():
        raise RunFolderError(
            f"{folder} is a symbolic link, which --overwrite does not follow: pass "
            f"--workdir={folder.resolve()}."
        )
    written = written_by_runs()
    strange = []
    for place, folders, names in os.walk(folder):
        paths = [pathlib.Path(place) / name for name in (*folders, *names)]
        for path in paths:
            is_written = written.fullmatch(path.relative_to(folder).as_posix())
            if path.is_symlink() or not (is_written or path.is_dir()):
                strange.append(path)
    if strange:
        shown = [str(path.relative_to(folder)) for path in sorted(strange)[:5]]
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise RunFolderError(
            f"{folder} contains files that no run wrote: {', '.join(shown)}{more}. "
            "Nothing was deleted. Move them away, or pass another --workdir."
        )
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK_FILE, CONFIG_FILE):
            entry.unlink()


def written_by_runs() -> re.Pattern[str]:
    """Returns a pattern of all paths that a run writes, relative to its folder."""

    def one_of(*names: str) -> str:
        return f"({'|'.join(map(re.escape, names))})"

    top = one_of(CONFIG_FILE, CODE_FILE, files.RESULTS_FILE, files.REPLACEMENTS_FILE)
    compared = (*files.COMPARISON_FILES, *files.SEARCH_FILES)
    patterns = (
        rf"\.?{top}",
        rf"{files.FIGURES_FOLDER}/{one_of(*files.FIGURE_FILES)}",
        rf"{files.COMPARISON_FOLDER}/{one_of(*compared)}",
        rf"{files.FORETELLING_FOLDER}/{one_of(*files.FORETELLING_FILES)}",
        rf"{CHECKPOINTS_FOLDER}/([^/]+/)?\d+(\.orbax-checkpoint-tmp[^/]*)?/.+",
        rf"{CHECKPOINTS_FOLDER}/[^/]+/\.?{RECORDS_FILE}(\.copy)?",
        rf"{TENSORBOARD_FOLDER}/[^/]+/events\.out\.tfevents\.[^/]+",
        rf"{PROFILE_FOLDER}/[^/]+/plugins/profile/.+",
    )
    # An evaluation that is still running has a lock, which no pattern fits.
    anywhere = rf"({files.EVALUATION_FOLDER}/)?({'|'.join(patterns)})"
    return re.compile(rf"{anywhere}|{re.escape(LOCK_FILE)}")


class LockedError(OSError):
    """Another run holds the lock, or may hold it; the message names its process."""


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder.

    The lock is the operating system's (flock), which releases it when the process ends,
    however it ends. So neither a leftover file nor a process that reuses the ID of a
    dead one can lock a run out. On a shared file system, the lock works for all hosts
    if hosts see each other's locks (NFS; Lustre with `flock`, not with `localflock`).
    On a file system without such locks, the file itself is the lock: the process that
    creates it holds it.

    Args:
      folder: the folder in which the lock file is created, and removed at the end.

    Raises:
      LockedError: a running process holds the lock; or, on a file system without
        locks, a process has not removed its file.
      OSError: the file cannot be written.
    """
    path = folder / LOCK_FILE
    with contextlib.ExitStack() as stack:
        file = None
        # The process that just released the lock may have removed the file.
        while file is None or not _is_at(path, file):
            file, is_new = _open(path)
            stack.callback(file.close)
            _lock(file, is_new, folder)
        stack.callback(path.unlink, missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}")
        file.flush()
        yield


def _open(path: pathlib.Path) -> tuple[TextIO, bool]:
    """Opens the lock file; the bool is whether this process created it."""
    while True:
        with contextlib.suppress(FileExistsError):
            return path.open("x+"), True
        with contextlib.suppress(FileNotFoundError):
            return path.open("r+"), False


def _lock(file: TextIO, is_new: bool, folder: pathlib.Path) -> None:
    reason = None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read() or "another process"
        reason = f"{folder} is in use by {holder}. Wait until that is done"
    except OSError:
        # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, or the Linux kernel's 524.
        if not is_new:
            holder = file.read() or "another process"
            reason = (
                f"{folder} is in use by {holder}, or was when that was killed; the "
                "file system has no locks that would show which. Delete "
                f"{folder / LOCK_FILE} if that process is gone"
            )
    if reason:
        raise LockedError(f"{reason}, or pass another --workdir.")


def _is_at(path: pathlib.Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False

"""The folder that holds one run, and only that."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import shutil

from experiments.engine import configuration, provenance
from experiments.engine.checkpoints import CHECKPOINTS_FOLDER, RECORDS_FILE
from experiments.engine.lock import LOCK_FILE, LockedError, hold_lock
from experiments.engine.provenance import CODE_FILE
from experiments.engine.tensorboard import TENSORBOARD_FOLDER
from experiments.reporting.files import (
    COMPARISON_FILES,
    COMPARISON_FOLDER,
    FIGURE_FILES,
    FIGURES_FOLDER,
    REPLACEMENTS_FILE,
    RESULTS_FILE,
)

CONFIG_FILE = "config.json"

# Paths, relative to the run folder, of all that a run writes.
_WRITTEN_BY_RUNS = re.compile(
    "|".join(
        (
            rf"\.?({re.escape(CONFIG_FILE)}|{re.escape(RESULTS_FILE)})",
            rf"\.?({re.escape(CODE_FILE)}|{re.escape(REPLACEMENTS_FILE)})",
            re.escape(LOCK_FILE),
            rf"{FIGURES_FOLDER}/({'|'.join(map(re.escape, FIGURE_FILES))})",
            rf"{COMPARISON_FOLDER}/({'|'.join(map(re.escape, COMPARISON_FILES))})",
            rf"{CHECKPOINTS_FOLDER}/([^/]+/)?\d+(\.orbax-checkpoint-tmp[^/]*)?/.+",
            rf"{CHECKPOINTS_FOLDER}/[^/]+/\.?{RECORDS_FILE}(\.copy)?",
            rf"{TENSORBOARD_FOLDER}/[^/]+/events\.out\.tfevents\.[^/]+",
        )
    )
)


class RunFolderError(ValueError):
    """A run folder that holds something else; the message says the way out."""


@contextlib.contextmanager
def open_folder(
    folder: pathlib.Path,
    config: str,
    overwrite: bool,
    code: provenance.Code | None = None,
    allow_changed_code: bool = False,
) -> Iterator[None]:
    """Makes a run folder ready, and keeps other runs out of it while this one lasts.

    The folder is a new one, an emptied one, or that of the same run or a shorter one.

    Args:
      folder: the run folder.
      config: the run's config, from `configuration.to_json`.
      overwrite: delete the run that the folder holds.
      code: what computes the run, to be recorded, from `provenance.current_code`.
      allow_changed_code: go on with a run of other code, or of another version.

    Raises:
      RunFolderError: the folder holds a run of another config or code, one not over,
        or something else; or, with `overwrite`, a file that no run has written.
      OSError: it cannot be written.
    """
    _check_contents(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder))
        except LockedError as error:
            raise RunFolderError(str(error)) from error
        path = folder / CONFIG_FILE
        # Another run may have come and gone since the first look.
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
    """Raises RunFolderError unless a run of one config can go on from the other."""
    changed = configuration.differences(old, new)
    if allow_other_version:
        is_version = f"{configuration.VERSION_FIELD}: "
        changed = [line for line in changed if not line.startswith(is_version)]
    if changed:
        raise RunFolderError(
            f"{folder} holds a run of another config or other settings of JAX:\n  "
            + "\n  ".join(changed)
            + "\nPass another --workdir, or --overwrite to delete that run."
        )


def _record_code(
    folder: pathlib.Path, goes_on: bool, code: provenance.Code, allow_changed: bool
) -> None:
    """Notes what computes the run from here on; see `open_folder` for errors."""
    codes = []
    if goes_on:
        config = json.loads((folder / CONFIG_FILE).read_text())
        try:
            codes = provenance.read_codes(folder)
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        codes = codes or [
            provenance.unrecorded_code(config[configuration.VERSION_FIELD])
        ]
        changed = provenance.differences(codes[-1], code)
        if changed and not allow_changed:
            raise RunFolderError(
                f"{folder} holds a run of other code, which may compute other numbers:"
                "\n  "
                + "\n  ".join(changed)
                + "\nGo on with the code of then; or pass "
                "--allow_changed_code to go on with this one (the results will name "
                "both), --overwrite to delete that run, or another --workdir."
            )
    provenance.write_codes(folder, provenance.add_code(codes, code))


def _check_contents(folder: pathlib.Path) -> bool:
    """Whether the folder holds a run; raises RunFolderError for anything else."""
    path = folder / CONFIG_FILE
    if path.is_file():
        _check_is_ours(path)
        return True
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; pass another --workdir.")
    # A run that was killed at once has left no more than these.
    begun = {LOCK_FILE, CODE_FILE, f".{CODE_FILE}", f".{CONFIG_FILE}"}
    if folder.is_dir() and any(entry.name not in begun for entry in folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and holds no run; pass another --workdir."
        )
    return False


def _check_is_ours(path: pathlib.Path) -> None:
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged, or is not the config of a run: {error}. Pass another "
            "--workdir; if a run did write it, put it back from a copy, or delete "
            f"{path.parent} yourself."
        ) from error
    if not (isinstance(fields, dict) and configuration.VERSION_FIELD in fields):
        raise RunFolderError(
            f"{path} is not the config of a run; pass another --workdir."
        )


def _delete_run(folder: pathlib.Path) -> None:
    """Deletes what runs have written, all but the lock and the config.

    The config stays to the last, so that a folder whose deletion was interrupted is
    still known as one of ours. The next run writes its own in its place.

    Raises:
      RunFolderError: there is more, or a symbolic link.
    """
    if folder.is_symlink():
        raise RunFolderError(
            f"{folder} is a symbolic link, and --overwrite follows none: pass "
            f"--workdir={folder.resolve()}."
        )
    strange = []
    for place, folders, files in os.walk(folder):
        paths = [pathlib.Path(place) / name for name in (*folders, *files)]
        for path in paths:
            is_written = _WRITTEN_BY_RUNS.fullmatch(path.relative_to(folder).as_posix())
            if path.is_symlink() or not (is_written or path.is_dir()):
                strange.append(path)
    if strange:
        shown = [str(path.relative_to(folder)) for path in sorted(strange)[:5]]
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise RunFolderError(
            f"{folder} holds what no run has written: {', '.join(shown)}{more}. "
            "Nothing was deleted: move it away, or pass another --workdir."
        )
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK_FILE, CONFIG_FILE):
            entry.unlink()

"""Checkpoints of a run: all that it takes to go on as if nothing had happened.

What only grows stands in append-only files of records beside the checkpoints, each kept
twice. A record begins with the SHA-256 sum of all that follows in it and the lengths of
its two parts: a header in JSON, which names the arrays with their dtypes and shapes,
and their bytes one after the other.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import inspect
import json
import math
import os
import pathlib
import re
import shutil
import struct
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from experiments.learning.keys import PRNG_IMPL
from experiments.run import distributed
from experiments.run.messages import say

CHECKPOINTS_FOLDER = "checkpoints"
RECORDS_FILE = "records"
_NUM_BYTES_FILE = "records.json"
_CHECKSUMS_FILE = "SHA256SUMS"


class CheckpointError(OSError):
    """A checkpoint cannot be written or read; the message says what is left."""


class Checkpointer:
    """Keeps the last two whole checkpoints of a case.

    A checkpoint is a folder named by the tasks done, which Orbax writes. A list of the
    SHA-256 sums of its files, as `sha256sum -c` reads it, makes it whole: a process may
    be killed before, and Orbax does not notice every bit that has flipped since.

    What only grows is not written anew each time, but appended to a file of records
    beside the checkpoints; each of these knows how many of its bytes belong to it.

    Args:
      folder: the run folder.
      case: name of the case.
    """

    def __init__(self, folder: pathlib.Path, case: str):
        self._case = case
        self._folder = (folder / CHECKPOINTS_FOLDER / case).absolute()
        self._manager: ocp.CheckpointManager | None = None
        self._records = RecordFile(self._folder / RECORDS_FILE)
        self._num_bytes = 0  # Of the records that belong to the last checkpoint.

    def save(
        self,
        tasks_done: int,
        tree: dict[str, Any],
        record: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes a checkpoint; of those before, one is kept.

        Args:
          tasks_done: by the case; must grow.
          tree: nested dict of NumPy arrays.
          record: what has come to the records since the checkpoint before.

        Raises:
          CheckpointError: it cannot be written, for example because the disk is full.
        """
        step = self._folder / str(tasks_done)
        try:
            num_bytes = self._num_bytes
            if record is not None and distributed.is_first():
                num_bytes = self._records.append(num_bytes, record)
            self._open().save(tasks_done, args=ocp.args.StandardSave(tree))
            self._open().wait_until_finished()
            if distributed.is_first():
                if num_bytes:
                    content = json.dumps({"bytes": num_bytes})
                    (step / _NUM_BYTES_FILE).write_text(content)
                _write_checksums(step)
            self._num_bytes = num_bytes
        except Exception as error:
            steps = _steps(self._folder)
            whole = next((step for step in steps if _is_listed(step)), None)
            start = "begins this case anew"
            if whole is not None:
                start = f"goes on from the one after {whole.name} tasks, which is whole"
            raise CheckpointError(
                f"Cannot write a checkpoint to {self._folder}: "
                f"{write_failure(error)}. Once it can be written, the same command "
                f"{start}."
            ) from error

    def restore(self) -> dict[str, Any] | None:
        """Reads the last whole checkpoint; None if there is none.

        One that is damaged is named, and the one before is read. Saved records are in
        the list `tree["records"]`.

        Raises:
          CheckpointError: all are damaged.
        """
        found = 0
        if distributed.is_first():
            found = self._find_whole()
        found = distributed.from_first(found)
        if found < 0:
            raise CheckpointError(
                f"All checkpoints of case {self._case!r} in {self._folder} are "
                "damaged. Put one back from a copy, pass --overwrite to start anew, or "
                "another --workdir."
            )
        if not found:
            return None
        tree = self._open().restore(found, args=ocp.args.StandardRestore())
        tree = jax.tree.map(np.asarray, tree)
        self._num_bytes = _num_bytes(self._folder / str(found))
        if self._num_bytes:
            tree["records"] = self._records.read(self._num_bytes)
        return tree

    def close(self) -> None:
        """Releases the folder."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False
            )
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager

    def _find_whole(self) -> int:
        """Tasks done at the last whole checkpoint, 0 for none, -1 if all are damaged.

        Later ones are deleted, since the run comes by them again.
        """
        damaged, unfinished = {}, []
        for step in _steps(self._folder):
            if not _is_listed(step):
                unfinished.append(step)
                continue
            wrong = next(_wrong_files(step), None) or self._wrong_records(step)
            if wrong is None:
                for other, reason in damaged.items():
                    say(
                        f"The checkpoint of case {self._case!r} after {other.name} "
                        f"tasks is damaged ({reason}); going on from the one after "
                        f"{step.name} tasks."
                    )
                for other in (*damaged, *unfinished):
                    shutil.rmtree(other)
                return int(step.name)
            damaged[step] = wrong
        if damaged:
            return -1
        for other in unfinished:
            shutil.rmtree(other)
        return 0

    def _wrong_records(self, step: pathlib.Path) -> str | None:
        """Names the file of records if those of a checkpoint are damaged.

        Those of which one copy is whole are repaired.
        """
        try:
            for path in self._records.repair(_num_bytes(step)):
                say(f"{path} was damaged, and is written anew from its copy.")
        except (RecordError, OSError) as error:
            return str(error)
        return None


def ignore_late_callbacks() -> None:
    """Silences what threads of Orbax print when a write has failed.

    Of several arrays one fails first and is reported. Others then find the event loop
    closed, and each would print a traceback after the message.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        is_late = isinstance(error, RuntimeError) and "Event loop is closed" in str(
            error
        )
        if not is_late:
            before(unraisable)

    sys.unraisablehook = hook


def write_failure(error: Exception) -> str:
    """Says in a few words why a write has failed.

    TensorStore puts what the system said before a page of its own settings.
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    code = re.search(r"\[os_error_code='?(\d+)", str(error))
    if code:
        return os.strerror(int(code[1]))
    said = re.search(r": ([^:]+) \[tensorstore_spec=", str(error))
    return said[1] if said else str(error).rstrip(".")


def _num_bytes(step: pathlib.Path) -> int:
    """Returns how many bytes of the records belong to a whole checkpoint."""
    path = step / _NUM_BYTES_FILE
    return json.loads(path.read_text())["bytes"] if path.exists() else 0


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders of checkpoints, the last one first."""
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    return sorted(steps, key=lambda path: -int(path.name))


def _is_listed(step: pathlib.Path) -> bool:
    return (step / _CHECKSUMS_FILE).is_file()


def _files(step: pathlib.Path) -> Iterator[pathlib.Path]:
    """Lists what Orbax has written; hidden files are of file systems and browsers."""
    for path in sorted(step.rglob("*")):
        is_hidden = path.name.startswith(".")
        if path.is_file() and not is_hidden and path.name != _CHECKSUMS_FILE:
            yield path


def _checksums(step: pathlib.Path) -> str:
    lines = []
    for path in _files(step):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(step).as_posix()}\n")
    return "".join(lines)


def _write_checksums(step: pathlib.Path) -> None:
    temporary = step / f".{_CHECKSUMS_FILE}"
    temporary.write_text(_checksums(step))
    os.replace(temporary, step / _CHECKSUMS_FILE)


def _wrong_files(step: pathlib.Path) -> Iterator[str]:
    """Names the files of a checkpoint that are not what was written."""
    try:
        written = (step / _CHECKSUMS_FILE).read_bytes().decode("utf-8")
        found = _checksums(step)
    except UnicodeDecodeError:
        yield _CHECKSUMS_FILE
        return
    except OSError as error:
        yield str(error)
        return
    for line in sorted({*written.split("\n")} ^ {*found.split("\n")}):
        yield line.partition("  ")[2] or _CHECKSUMS_FILE


def to_dict(state: Any) -> dict[str, np.ndarray]:
    """Flattens a pytree of NumPy arrays into a dict."""
    return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(state))}


def from_dict(saved: dict[str, np.ndarray], like: Any, case: str) -> Any:
    """Undoes `to_dict` for a state of the structure of `like`.

    Args:
      saved: what was saved, with a leading axis of lanes.
      like: a state, or its shapes and dtypes.
      case: name of the case, for the message.

    Raises:
      CheckpointError: another version's state, of other arrays.
    """
    leaves, treedef = jax.tree.flatten(jax.eval_shape(keys_to_data, like))
    found = [saved[name] for name in sorted(saved, key=int)]
    held, wanted = (
        [(leaf.shape[1:], leaf.dtype) for leaf in each] for each in (found, leaves)
    )
    if held != wanted:
        raise CheckpointError(
            f"The checkpoint of case {case!r} holds {_what_differs(held, wanted)}, "
            "pass --overwrite to start anew, or another --workdir."
        )
    return treedef.unflatten(found)


Leaves = Sequence[tuple[tuple[int, ...], np.dtype]]


def _what_differs(held: Leaves, wanted: Leaves) -> str:
    """Says what state a checkpoint holds, and how to go on with it.

    Args:
      held: shapes of a lane and dtypes in the checkpoint.
      wanted: those of the state here, in which something differs.
    """
    if len(held) == len(wanted):
        pairs = zip(held, wanted, strict=True)
        differing = [(old, new) for old, new in pairs if old != new]
        words = {(*old[0][-1:], *new[0][-1:]) for old, new in differing}
        dtypes = {dtype for pair in differing for _, dtype in pair}
        if words == {(4, 2)} and dtypes == {np.dtype(np.uint32)}:
            return (
                "keys of the generators rbg or unsafe_rbg, which earlier versions of "
                "cbp_jax took if JAX_DEFAULT_PRNG_IMPL named one; this version draws "
                f"all random numbers by {PRNG_IMPL}. Go on with that version and "
                "that setting"
            )
        if all(
            (old[0], old[1].kind) == (new[0], new[1].kind) for old, new in differing
        ):
            wide = any(dtype.itemsize == 8 for _, dtype in held)
            return (
                f"numbers of {64 if wide else 32} bits where this run has others. Set "
                f"JAX_ENABLE_X64={wide} to go on"
            )
    return (
        f"the state of another version of cbp_jax ({len(held)} arrays, {len(wanted)} "
        "are needed here). Go on with that version"
    )


def keys_to_data(tree: Any) -> Any:
    """Turns typed PRNG keys into their bits, which every library can save."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def data_to_keys(tree: Any, like: Any) -> Any:
    """Undoes `keys_to_data` for a tree of the dtypes of `like`."""

    def restore(leaf: Any, like: Any) -> Any:
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=PRNG_IMPL)

    return jax.tree.map(restore, tree, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


_START = struct.Struct("<32sQQ")  # Checksum, length of the header, of the arrays.


class RecordError(ValueError):
    """A record is damaged in both copies; the message names the file."""


class _Record(NamedTuple):
    arrays: dict[str, np.ndarray]
    end: int  # Its last byte + 1.


class RecordFile:
    """Records written one after the other, so that each costs what it holds.

    Whoever writes keeps the number of bytes that are whole, in a checkpoint written
    after them. What a killed process has left behind these is overwritten.

    Args:
      path: of the first copy; the second is `PATH.copy`, since what is written once
        and never again must survive a damaged file as well as checkpoints do.
    """

    def __init__(self, path: pathlib.Path):
        self._paths = (path, path.with_name(f"{path.name}.copy"))

    def append(self, num_bytes: int, arrays: Mapping[str, np.ndarray]) -> int:
        """Writes a record, and waits until it is on the disk.

        Args:
          num_bytes: what is whole so far; the record goes there.
          arrays: what it holds.

        Returns:
          The number of bytes that are whole now.

        Raises:
          OSError: it cannot be written, and what was whole before still is; or that
            is not there any more.
        """
        record = _to_bytes(arrays)
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Neither "a" nor "w": a record may have to go before what is there.
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                if file.seek(0, os.SEEK_END) < num_bytes:
                    raise OSError(f"{path.name} has lost what was written before")
                file.truncate(num_bytes)
                file.seek(num_bytes)
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
        return num_bytes + len(record)

    def read(self, num_bytes: int) -> list[dict[str, np.ndarray]]:
        """Reads the records in the first bytes, each from a copy in which it is whole.

        Raises:
          RecordError: one is damaged in both copies.
        """
        return [record.arrays for record in self._records(num_bytes)[0]]

    def repair(self, num_bytes: int) -> list[pathlib.Path]:
        """Writes the first bytes of damaged copies anew.

        Returns:
          The copies that were damaged.

        Raises:
          RecordError: a record is damaged in both.
          OSError: a copy cannot be written.
        """
        _, whole = self._records(num_bytes)
        damaged = [path for path in self._paths if _read(path, num_bytes) != whole]
        for path in damaged:
            temporary = path.with_name(f".{path.name}")
            temporary.write_bytes(whole)
            os.replace(temporary, path)
        return damaged

    def _records(self, num_bytes: int) -> tuple[list[_Record], bytes]:
        """Returns the records in the first bytes, and these bytes, free of damage."""
        copies = [_read(path, num_bytes) for path in self._paths]
        records, pieces, start = [], [], 0
        while start < num_bytes:
            for copy in copies:
                record = _from_bytes(copy, start)
                if record is not None:
                    break
            else:
                raise RecordError(self._paths[0].name)
            records.append(record)
            pieces.append(copy[start : record.end])
            start = record.end
        return records, b"".join(pieces)


def _read(path: pathlib.Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except FileNotFoundError:
        return b""


def _to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    layout = {name: [a.dtype.name, list(a.shape)] for name, a in arrays.items()}
    header = json.dumps(layout).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    rest = struct.pack("<QQ", len(header), len(body)) + header + body
    return hashlib.sha256(rest).digest() + rest


def _from_bytes(data: bytes, start: int) -> _Record | None:
    """Reads the record that begins there; None if it is damaged or cut off."""
    if len(data) < start + _START.size:
        return None
    checksum, header_size, body_size = _START.unpack_from(data, start)
    body = start + _START.size + header_size
    end = body + body_size
    if end > len(data):
        return None
    rest = memoryview(data)[start + len(checksum) : end]
    if hashlib.sha256(rest).digest() != checksum:
        return None
    arrays = {}
    for name, (dtype, shape) in json.loads(data[body - header_size : body]).items():
        size = math.prod(shape)
        array = np.frombuffer(data, np.dtype(dtype), size, body).reshape(shape)
        arrays[name] = array
        body += array.nbytes
    return _Record(arrays, end)


_TRIAL = ".trial"  # In place of a case, so that --overwrite knows what a kill leaves.


@contextlib.contextmanager
def writable_checkpoints(folder: pathlib.Path) -> Iterator[None]:
    """Makes sure that checkpoints can be written as long as the context lasts.

    TensorStore, with which Orbax writes, locks each file by the operating system, and
    fails where there are no such locks. There each file is locked by another one beside
    it, which a process that is killed leaves behind; but only in a checkpoint that is
    not whole, which Orbax deletes before it writes that one again.

    Args:
      folder: the run folder, which must be locked.

    Raises:
      CheckpointError: they cannot be written.
    """
    trial = (folder / CHECKPOINTS_FOLDER / _TRIAL).absolute()
    with contextlib.ExitStack() as stack:
        try:
            _write_file(trial / "1")
        except Exception as without_locks:
            stack.enter_context(_lock_files_beside())
            try:
                _write_checkpoint(folder)
            except CheckpointError as error:
                raise CheckpointError(
                    f"Cannot write checkpoints to {trial.parent}: "
                    f"{write_failure(without_locks)}. Nothing was trained; "
                    "pass another --workdir."
                ) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        yield


def _write_file(folder: pathlib.Path) -> None:
    """Writes one file as TensorStore does, in a hundredth of a checkpoint's time."""
    store = ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    store.write("trial", b"written").result()


def _write_checkpoint(folder: pathlib.Path) -> None:
    checkpointer = Checkpointer(folder, _TRIAL)
    try:
        checkpointer.save(1, {"numbers": np.arange(3)})
    finally:
        checkpointer.close()


@contextlib.contextmanager
def _lock_files_beside() -> Iterator[None]:
    """Has TensorStore lock files by files; Orbax has no setting for it (0.12)."""
    module = inspect.getmodule(ocp.type_handlers.get_ts_context)
    get_context = module.get_ts_context

    def get_ts_context(**options: Any) -> ts.Context:
        spec = get_context(**options).spec.to_json()
        return ts.Context(spec | {"file_io_locking": {"mode": "lockfile"}})

    module.get_ts_context = get_ts_context
    try:
        yield
    finally:
        module.get_ts_context = get_context

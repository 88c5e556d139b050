"""Checkpoints of a run, which continues from them as if it had not stopped.

Data that only grow are in append-only files of records next to the checkpoints, in two
copies. A record begins with the SHA-256 checksum of the rest of it and the lengths of
its two parts: a JSON header with the names, dtypes and shapes of the arrays, and their
concatenated bytes.
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
    """A checkpoint cannot be written or read; the message says what is intact."""


class Checkpointer:
    """Keeps the last two complete checkpoints of a case.

    A checkpoint is a folder that Orbax writes, named by the number of tasks done. A
    file of SHA-256 checksums, as `sha256sum -c` reads it, marks it as complete, since
    the process may be killed while writing, and Orbax does not notice every flipped
    bit.

    Data that only grow are not rewritten each time, but appended to a file of records
    next to the checkpoints; each checkpoint knows how many bytes of it are its own.

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
        """Writes a checkpoint, and keeps one earlier checkpoint.

        Args:
          tasks_done: tasks that the case has done; must grow.
          tree: nested dict of NumPy arrays.
          record: new data for the records since the previous checkpoint.

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
            start = "starts this case from scratch"
            if whole is not None:
                start = f"continues from the intact one after {whole.name} tasks"
            raise CheckpointError(
                f"Cannot write a checkpoint to {self._folder}: "
                f"{write_failure(error)}. Once it can be written, the same command "
                f"{start}."
            ) from error

    def restore(self) -> dict[str, Any] | None:
        """Reads the last intact checkpoint; None if there is none.

        If one is damaged, a message names it and the previous one is read. Saved
        records are in the list `tree["records"]`.

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
                "damaged. Restore one from a backup, pass --overwrite to start from "
                "scratch, or pass another --workdir."
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
        """Tasks done at the last intact checkpoint, 0 for none, -1 if all are damaged.

        Later ones are deleted, since the run will write them again.
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
                        f"tasks is damaged ({reason}); continuing from the one after "
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
        """Returns the name of the file of records if those of a checkpoint are damaged.

        Records with one intact copy are repaired.
        """
        try:
            for path in self._records.repair(_num_bytes(step)):
                say(f"{path} was damaged and has been restored from its copy.")
        except (RecordError, OSError) as error:
            return str(error)
        return None


def ignore_late_callbacks() -> None:
    """Silences the threads of Orbax after a write has failed.

    The first array that fails is reported. The others then find the event loop closed,
    and each would print a traceback after the message.
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
    """Says in a few words why a write failed.

    TensorStore prints the system's message followed by a page of its own settings.
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    code = re.search(r"\[os_error_code='?(\d+)", str(error))
    if code:
        return os.strerror(int(code[1]))
    said = re.search(r": ([^:]+) \[tensorstore_spec=", str(error))
    return said[1] if said else str(error).rstrip(".")


def _num_bytes(step: pathlib.Path) -> int:
    """Returns how many bytes of the records belong to a complete checkpoint."""
    path = step / _NUM_BYTES_FILE
    return json.loads(path.read_text())["bytes"] if path.exists() else 0


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders of checkpoints, latest first."""
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    return sorted(steps, key=lambda path: -int(path.name))


def _is_listed(step: pathlib.Path) -> bool:
    return (step / _CHECKSUMS_FILE).is_file()


def _files(step: pathlib.Path) -> Iterator[pathlib.Path]:
    """Lists the files that Orbax wrote; hidden ones come from other programs."""
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
    """Yields the names of the files of a checkpoint that are damaged."""
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
    """Undoes `to_dict` for a state with the structure of `like`.

    Args:
      saved: the saved arrays, with a leading axis of lanes.
      like: a state, or its shapes and dtypes.
      case: name of the case, for the message.

    Raises:
      CheckpointError: the arrays are those of another version's state.
    """
    leaves, treedef = jax.tree.flatten(jax.eval_shape(keys_to_data, like))
    found = [saved[name] for name in sorted(saved, key=int)]
    held, wanted = (
        [(leaf.shape[1:], leaf.dtype) for leaf in each] for each in (found, leaves)
    )
    if held != wanted:
        raise CheckpointError(
            f"The checkpoint of case {case!r} contains {_what_differs(held, wanted)}, "
            "pass --overwrite to start from scratch, or pass another --workdir."
        )
    return treedef.unflatten(found)


Leaves = Sequence[tuple[tuple[int, ...], np.dtype]]


def _what_differs(held: Leaves, wanted: Leaves) -> str:
    """Says what state a checkpoint contains, and how to continue from it.

    Args:
      held: shapes (of one lane) and dtypes in the checkpoint.
      wanted: shapes and dtypes of this run's state, which differ.
    """
    if len(held) == len(wanted):
        pairs = zip(held, wanted, strict=True)
        differing = [(old, new) for old, new in pairs if old != new]
        words = {(*old[0][-1:], *new[0][-1:]) for old, new in differing}
        dtypes = {dtype for pair in differing for _, dtype in pair}
        if words == {(4, 2)} and dtypes == {np.dtype(np.uint32)}:
            return (
                "keys of the generators rbg or unsafe_rbg, which earlier versions of "
                "cbp_jax used if JAX_DEFAULT_PRNG_IMPL named one; this version draws "
                f"all random numbers with {PRNG_IMPL}. Continue with that version and "
                "that setting"
            )
        if all(
            (old[0], old[1].kind) == (new[0], new[1].kind) for old, new in differing
        ):
            wide = any(dtype.itemsize == 8 for _, dtype in held)
            return (
                f"{64 if wide else 32}-bit numbers, but this run uses another "
                f"precision. Set JAX_ENABLE_X64={wide} to continue"
            )
    return (
        f"the state of another version of cbp_jax ({len(held)} arrays; this version "
        f"needs {len(wanted)}). Continue with that version"
    )


def keys_to_data(tree: Any) -> Any:
    """Turns typed PRNG keys into their bits, which any library can save."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def data_to_keys(tree: Any, like: Any) -> Any:
    """Undoes `keys_to_data` for a tree with the dtypes of `like`."""

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
    """An append-only file of records, so that a write costs only its new data.

    The caller saves the number of valid bytes in a checkpoint written after them.
    Anything that a killed process left after these bytes is overwritten.

    Args:
      path: path of the first copy. The second is `PATH.copy`, since data that are
        written only once must survive a damaged file as checkpoints do.
    """

    def __init__(self, path: pathlib.Path):
        self._paths = (path, path.with_name(f"{path.name}.copy"))

    def append(self, num_bytes: int, arrays: Mapping[str, np.ndarray]) -> int:
        """Writes a record, and waits until it is on the disk.

        Args:
          num_bytes: number of valid bytes so far, after which the record is written.
          arrays: the arrays of the record.

        Returns:
          The new number of valid bytes.

        Raises:
          OSError: the record cannot be written, which leaves the earlier records
            intact; or some of these are missing.
        """
        record = _to_bytes(arrays)
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Neither "a" nor "w": a record may have to overwrite the end of the file.
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                if file.seek(0, os.SEEK_END) < num_bytes:
                    raise OSError(f"{path.name} has lost earlier records")
                file.truncate(num_bytes)
                file.seek(num_bytes)
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
        return num_bytes + len(record)

    def read(self, num_bytes: int) -> list[dict[str, np.ndarray]]:
        """Reads the records in the first bytes, each from an intact copy.

        Raises:
          RecordError: a record is damaged in both copies.
        """
        return [record.arrays for record in self._records(num_bytes)[0]]

    def repair(self, num_bytes: int) -> list[pathlib.Path]:
        """Rewrites the first bytes of damaged copies.

        Returns:
          The copies that were damaged.

        Raises:
          RecordError: a record is damaged in both copies.
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
        """Returns the records in the first bytes, and these bytes without damage."""
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
    """Reads the record that begins at `start`; None if it is damaged or cut off."""
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


_TRIAL = ".trial"  # Placed like a case, so that --overwrite recognizes its remains.


@contextlib.contextmanager
def writable_checkpoints(folder: pathlib.Path) -> Iterator[None]:
    """Makes sure that checkpoints can be written inside the context.

    TensorStore, with which Orbax writes, locks each file through the operating system,
    and fails if the file system has no such locks. In that case, lock files are used
    instead. A killed process leaves these behind, but only in an incomplete checkpoint,
    which Orbax deletes before it writes that checkpoint again.

    Args:
      folder: the run folder, which must be locked.

    Raises:
      CheckpointError: checkpoints cannot be written.
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
    """Writes one file with TensorStore, 100 times faster than a checkpoint."""
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
    """Makes TensorStore use lock files; Orbax has no setting for it (0.12)."""
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

"""Whether checkpoints can be written, and with which locks: known before training."""

from collections.abc import Iterator
import contextlib
import inspect
import pathlib
import shutil
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from experiments.engine import checkpoints
from experiments.engine.checkpoints import Checkpointer, CheckpointError

_PROBE = ".probe"  # In place of a case, so that --overwrite knows what a kill leaves.


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
    probe = (folder / checkpoints.CHECKPOINTS_FOLDER / _PROBE).absolute()
    with contextlib.ExitStack() as stack:
        try:
            _write_file(probe / "1")
        except Exception as without_locks:
            stack.enter_context(_lock_files_beside())
            try:
                _write_checkpoint(folder)
            except CheckpointError as error:
                raise CheckpointError(
                    f"Cannot write checkpoints to {probe.parent}: "
                    f"{checkpoints.write_failure(without_locks)}. Nothing was trained; "
                    "pass another --workdir."
                ) from error
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        yield


def _write_file(folder: pathlib.Path) -> None:
    """Writes one file as TensorStore does, in a hundredth of a checkpoint's time."""
    store = ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    store.write("probe", b"written").result()


def _write_checkpoint(folder: pathlib.Path) -> None:
    checkpointer = Checkpointer(folder, _PROBE)
    try:
        checkpointer.save(1, {"probe": np.arange(3)})
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

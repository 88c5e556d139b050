"""A lock that keeps a second run out of a run folder."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import socket

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder; the system lets go of that of a dead process.

    Args:
      folder: where the lock file is made, and removed at the end.

    Raises:
      BlockingIOError: a living process holds it; the message names it and its host.
      OSError: the file cannot be written, or its file system knows no locks.
    """
    path = folder / LOCK_FILE
    with contextlib.ExitStack() as stack:
        file = None
        # The file may have been removed by the one who held it a moment ago.
        while file is None or not path.exists() or not _is_same(path, file.fileno()):
            file = stack.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                raise BlockingIOError(holder) from None
        stack.callback(path.unlink, missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}")
        file.flush()
        yield


def _is_same(path: pathlib.Path, descriptor: int) -> bool:
    return os.path.samestat(path.stat(), os.fstat(descriptor))

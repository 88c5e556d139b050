"""A lock that keeps a second run out of a run folder."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import socket
from typing import TextIO

LOCK_FILE = "run.lock"


class LockedError(OSError):
    """Another run holds the lock, or may do so; the message names its process."""


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder.

    The lock is the operating system's (flock), which it takes from a process that ends,
    however it ends, so neither a file that is left over nor a process that got the
    number of a dead one can keep a run out. On a shared file system it holds for all
    hosts, if locks of one host are known to the others (NFS; Lustre with `flock`, not
    with `localflock`). Where there are no such locks, whatever the system calls that,
    the file itself is the lock: who creates it holds it.

    Args:
      folder: where the lock file is made, and removed at the end.

    Raises:
      LockedError: a living process holds the lock; or a process did on a file system
        without locks, and has not removed its file.
      OSError: the file cannot be written.
    """
    path = folder / LOCK_FILE
    with contextlib.ExitStack() as stack:
        file = None
        # The file may have been removed by the one who held it a moment ago.
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
    """Opens the lock file, and tells whether this process has created it."""
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
        reason = f"{folder} is in use by {holder}. Wait until it is done"
    except OSError:
        # Systems say ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, or 524 of the Linux kernel.
        if not is_new:
            holder = file.read() or "another process"
            reason = (
                f"{folder} is in use by {holder}, or was when that was killed: the "
                "file system has no locks, which would tell. Delete "
                f"{folder / LOCK_FILE} if that process is gone"
            )
    if reason:
        raise LockedError(f"{reason}, or pass another --workdir.")


def _is_at(path: pathlib.Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False

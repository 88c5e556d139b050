"""Append-only files of arrays, each kept twice, whose damage is noticed.

A file is a sequence of records. Each begins with the SHA-256 sum of all that follows in
it and the lengths of its two parts: a header in JSON, which names the arrays with their
dtypes and shapes, and their bytes one after the other.
"""

from collections.abc import Mapping
import hashlib
import json
import math
import os
import pathlib
import struct
from typing import NamedTuple

import numpy as np

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

"""Messages of a run in progress."""

import contextlib
import sys
from typing import TextIO

from tqdm import tqdm


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line above the progress bar, if it can be printed.

    A closed terminal or a pipe without a reader must not end a run or keep it from
    saving. A signal handler may interrupt another print, and Python does not allow a
    second one inside it.

    Args:
      text: one or more lines.
      file: the stream; None for standard error.
    """
    # OSError: no terminal. ValueError: closed stream. RuntimeError: nested write.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        tqdm.write(text, file=file or sys.stderr)

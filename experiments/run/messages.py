"""What a run says while it goes on."""

import contextlib
import sys
from typing import TextIO

from tqdm import tqdm


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line above the progress bar, if it can be printed.

    A terminal that was closed or a pipe that nobody reads must not end a run, nor keep
    it from saving. A signal handler may come in the middle of another line, and Python
    allows no second one inside it.

    Args:
      text: the line, or several.
      file: where to; None for standard error.
    """
    # OSError: the terminal is gone. ValueError: closed. RuntimeError: inside a write.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        tqdm.write(text, file=file or sys.stderr)

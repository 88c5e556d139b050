"""Runs programs in the process of the tests, which costs next to nothing.

Tests marked `slow` launch the real command line.
"""

import contextlib
import importlib.util
import io
import logging
import os
import runpy
from typing import NamedTuple
from unittest import mock
import warnings

from absl import app
from absl.testing import flagsaver

# absl defines its own flags once in a process, so that they must be there before.
app.define_help_flags()


class Finished(NamedTuple):
    """What a program has left; named as in `subprocess`."""

    returncode: int
    stdout: str
    stderr: str


def run_program(module, *arguments):
    """Runs a module of `experiments` as `python -m` does, up to its exit.

    Flags, the environment and handlers of logs are as before at the end. An exception
    that the program lets through is raised.
    """
    path = importlib.util.find_spec(f"experiments.{module}").origin
    root, status = logging.getLogger(), 0
    handlers = root.handlers[:]
    with (
        flagsaver.flagsaver(),
        warnings.catch_warnings(),
        mock.patch("sys.argv", [path, *map(str, arguments)]),
        # The devices of the tests stay.
        mock.patch.dict(os.environ, {"JAX_NUM_CPU_DEVICES": "4"}),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # As Python itself does.
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        finally:
            root.handlers[:] = handlers
    return Finished(status, out.getvalue(), err.getvalue())

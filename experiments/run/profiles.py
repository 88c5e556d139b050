"""Profiles of a task: what a device does in each part of an update."""

from collections.abc import Iterator
import contextlib
import pathlib
import sys

import jax

from experiments.run import distributed
from experiments.run.messages import say

PROFILE_FOLDER = "profile"


@contextlib.contextmanager
def profiled_task(
    folder: pathlib.Path, case: str, task: int, is_on: bool = True
) -> Iterator[None]:
    """Profiles what runs inside the context, and prints how to open the profile.

    The parts of a task are the named scopes `stream`, `measures` and, in each update,
    `gradient`, `optimizer`, `apply` and `log`.

    Args:
      folder: the run folder; the profile goes to `profile/CASE` there.
      case: name of the case.
      task: number of the task.
      is_on: False writes no profile.
    """
    if not (is_on and distributed.is_first()):
        yield
        return
    place = folder / PROFILE_FOLDER / case
    with jax.profiler.trace(str(place), create_perfetto_trace=True):
        yield
    files = sorted(place.glob("plugins/profile/*/perfetto_trace.json.gz"))
    say(
        f"Profile of task {task} of case {case!r}: {files[-1] if files else place}\n"
        "Open this file at https://ui.perfetto.dev, or the folder with `tensorboard "
        f"--logdir={place}` (pip install tensorboard xprof).",
        sys.stdout,
    )

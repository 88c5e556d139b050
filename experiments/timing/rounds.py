"""Timing programs by turns, within a limit."""

from collections.abc import Callable, Mapping
import math
import time

import numpy as np

_MOST_CALLS = 10_000


class Deadline:
    """The time by which all must be done.

    Args:
      seconds: from now; infinity for no limit.
    """

    def __init__(self, seconds: float = math.inf):
        self._end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until it is over; negative after that."""
        return self._end - time.monotonic()


def take_turns(
    programs: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    sample_seconds: float,
    deadline: Deadline,
) -> dict[str, np.ndarray]:
    """Times all programs in each of some rounds.

    Machines speed up and slow down, so what is compared must alternate. A program that
    is over in less than `sample_seconds` is called several times in a row; how many is
    found by a first call that does not count.

    Args:
      programs: each runs to its end when called, and has done so before, so that
        nothing is left to compile.
      rounds: how many; fewer where the deadline comes first, but at least one.
      sample_seconds: what a program is timed for in a round.
      deadline: of the rounds.

    Returns:
      For each program the seconds of a call, float64 [rounds].
    """
    calls = {}
    for name, program in programs.items():
        seconds = max(_seconds(program, 1), 1e-9)
        calls[name] = min(_MOST_CALLS, max(1, math.ceil(sample_seconds / seconds)))
    times: dict[str, list[float]] = {name: [] for name in programs}
    for done in range(rounds):
        if done and deadline.seconds_left <= 0:
            break
        for name, program in programs.items():
            times[name].append(_seconds(program, calls[name]))
    return {name: np.array(found) for name, found in times.items()}


def _seconds(program: Callable[[], None], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        program()
    return (time.perf_counter() - start) / calls

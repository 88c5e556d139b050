"""Times programs in interleaved rounds."""

from collections.abc import Callable, Hashable, Mapping
import math
import time
from typing import TypeVar

import numpy as np

_MOST_CALLS = 10_000

Name = TypeVar("Name", bound=Hashable)


def take_turns(
    programs: Mapping[Name, Callable[[], None]],
    *,
    rounds: int,
    sample_seconds: float = 0.0,
    end: float = math.inf,
) -> dict[Name, np.ndarray]:
    """Times all programs in each round.

    Machines speed up and slow down, so programs that are compared must alternate. A
    program that takes less than `sample_seconds` is called several times in a row; a
    first, uncounted call determines how often.

    Args:
      programs: each runs to its end when called. They should be compiled already.
      rounds: number of rounds; fewer if `end` comes first, but at least one.
      sample_seconds: how long a program is timed in a round.
      end: the latest time for a round to start, as `time.monotonic`.

    Returns:
      The seconds of a call for each program, float64 [rounds].
    """
    calls = {}
    for name, program in programs.items():
        seconds = max(_seconds(program, 1), 1e-9)
        calls[name] = min(_MOST_CALLS, max(1, math.ceil(sample_seconds / seconds)))
    times: dict[Name, list[float]] = {name: [] for name in programs}
    for done in range(rounds):
        if done and time.monotonic() >= end:
            break
        for name, program in programs.items():
            times[name].append(_seconds(program, calls[name]))
    return {name: np.array(found) for name, found in times.items()}


def _seconds(program: Callable[[], None], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        program()
    return (time.perf_counter() - start) / calls

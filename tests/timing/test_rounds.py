"""Taking turns, by a clock that only the programs move."""

import numpy as np
import pytest

from experiments.timing import rounds


class Clock:
    """Programs of known durations, and the clock that they move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(rounds.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(rounds.time, "monotonic", lambda: self.now)

    def take_turns(self, **options):
        def program(name, seconds):
            def run():
                self.calls.append(name)
                self.now += seconds

            return run

        programs = {"fast": program("fast", 1), "slow": program("slow", 500)}
        return rounds.take_turns(programs, **options)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_programs_alternate_and_short_ones_are_called_until_they_fill_a_sample(clock):
    times = clock.take_turns(rounds=3, sample_seconds=2.0)
    assert clock.calls == ["fast", "slow"] + ["fast", "fast", "slow"] * 3
    np.testing.assert_allclose(times["fast"], [1, 1, 1])
    np.testing.assert_allclose(times["slow"], [500, 500, 500])


@pytest.mark.parametrize(("end", "number"), [(1, 1), (1002, 1), (1003, 2), (9999, 3)])
def test_at_the_end_there_is_at_least_one_round(clock, end, number):
    """The first calls take 501 seconds, and so does a round."""
    assert len(clock.take_turns(rounds=3, end=end)["slow"]) == number

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

    def program(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def take_turns(clock, *, sample_seconds=0.0, limit=np.inf, number=3):
    programs = {"fast": clock.program("fast", 1), "slow": clock.program("slow", 500)}
    return rounds.take_turns(
        programs,
        rounds=number,
        sample_seconds=sample_seconds,
        deadline=rounds.Deadline(limit),
    )


def test_times_are_those_of_a_call(clock):
    times = take_turns(clock, sample_seconds=10.0)
    np.testing.assert_allclose(times["fast"], [1, 1, 1])
    np.testing.assert_allclose(times["slow"], [500, 500, 500])


def test_programs_alternate_after_a_first_call_each(clock):
    take_turns(clock)
    assert clock.calls == ["fast", "slow"] + ["fast", "slow"] * 3


def test_a_short_program_is_called_until_it_fills_a_sample(clock):
    take_turns(clock, sample_seconds=10.0, number=1)
    assert clock.calls[2:] == ["fast"] * 10 + ["slow"]


@pytest.mark.parametrize(("limit", "number"), [(1, 1), (1002, 1), (1003, 2), (9999, 3)])
def test_the_deadline_leaves_at_least_one_round(clock, limit, number):
    """The first calls take 501 seconds, and so does a round."""
    assert len(take_turns(clock, limit=limit)["slow"]) == number

"""Signals that ask a run to stop, once or more often, anywhere in it."""

import errno
import io
import signal
import sys
import threading

import pytest
from tiny_runs import tiny_digits
import xarray as xr

from experiments import permuted_mnist
from experiments.reporting import run_results
from experiments.run import command_line, runner, signals
from experiments.run.cases import CompiledCase
from experiments.run.folder import LOCK_FILE
from experiments.run.signals import SaveClock, stop_signals

pytestmark = pytest.mark.slow

MAKE_PROBLEM = permuted_mnist.make_problem
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
NUMBERS = [getattr(signal, name) for name in NAMES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run(folder)


@pytest.fixture(autouse=True)
def handlers():
    """Fails unless all handlers are back at the end."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


def run(folder, **overrides):
    config = tiny_digits(num_tasks=3, checkpoint_every=100, **overrides)
    return runner.run(config, folder, MAKE_PROBLEM)


def checkpoints(folder):
    """Tasks done at each whole checkpoint."""
    found = folder.glob("checkpoints/*/*/SHA256SUMS")
    return sorted(f"{path.parts[-3]}/{path.parts[-2]}" for path in found)


def during(monkeypatch, owner, name, action, call=1):
    """Does something in the middle of one call of a method."""
    method, calls = getattr(owner, name), []

    def acting(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            action()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, acting)
    return calls


def same(one, other):
    one, other = (each.drop_vars("steps_per_second") for each in (one, other))
    xr.testing.assert_equal(one, other)


def test_a_repeated_signal_saves_first(whole, tmp_path, monkeypatch, capsys):
    def repeatedly():
        for _ in range(3):
            signal.raise_signal(signal.SIGUSR1)

    calls = during(monkeypatch, CompiledCase, "run_task", repeatedly, call=2)
    with pytest.raises(runner.Interrupted, match="after task 1 of case 'backprop'"):
        run(tmp_path)
    assert len(calls) == 2
    assert checkpoints(tmp_path) == ["backprop/2"]
    assert not (tmp_path / LOCK_FILE).exists()
    printed = capsys.readouterr().err
    assert printed.count("SIGUSR1 received") == 1
    assert "Task 1 of case 'backprop' ends first (about " in printed
    assert "A kill before then loses this task and 1 before it" in printed
    same(run(tmp_path), whole)


@pytest.mark.parametrize("name", NAMES)
def test_every_signal_that_asks_to_stop_is_taken(name, capsys):
    with stop_signals() as request:
        assert not request
        for _ in range(3):
            signal.raise_signal(getattr(signal, name))
        assert request
    assert capsys.readouterr().err.count(f"{name} received") == 1


@pytest.mark.parametrize("first", [name for name in NAMES if name != "SIGINT"])
def test_only_a_second_ctrl_c_interrupts_and_only_where_nothing_is_saved(first):
    with stop_signals() as request:
        with request.at_once():
            signal.raise_signal(getattr(signal, first))
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(getattr(signal, first))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), request.at_once():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_stops_inside_the_task(whole, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(signals, "_LEAST_SAVES_APART", 0)
    during(monkeypatch, CompiledCase, "run_task", twice, call=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_seconds=0)
    assert checkpoints(tmp_path) == ["backprop/1", "backprop/2"]
    assert not (tmp_path / LOCK_FILE).exists()
    same(run(tmp_path), whole)


def test_no_signal_interrupts_a_checkpoint(whole, tmp_path, monkeypatch):
    def all_of_them():
        for number in (*NUMBERS, *NUMBERS):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        during(patch, runner.Checkpointer, "save", all_of_them)
        with pytest.raises(runner.Interrupted, match="before task 0 of case 'cont"):
            run(tmp_path)
    assert checkpoints(tmp_path) == ["backprop/3"]
    with monkeypatch.context() as patch:
        during(patch, run_results, "save", all_of_them)
        same(run(tmp_path), whole)
    same(run_results.load(tmp_path), whole)


def test_a_terminal_that_is_gone_keeps_nothing_from_being_saved(
    whole, tmp_path, monkeypatch
):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    def hang_up():
        monkeypatch.setattr(sys, "stdout", Gone())
        monkeypatch.setattr(sys, "stderr", Gone())
        signal.raise_signal(signal.SIGHUP)

    config = tiny_digits(num_tasks=3, checkpoint_every=100)
    with monkeypatch.context() as patch:
        during(patch, CompiledCase, "run_task", hang_up, call=2)
        assert command_line.train(config, tmp_path, MAKE_PROBLEM) == 1
    assert checkpoints(tmp_path) == ["backprop/2"]
    # Nor does it end the rest of a run: the table goes nowhere, the figures are drawn.
    assert command_line.train(config, tmp_path, MAKE_PROBLEM) == 0
    assert (tmp_path / "figures" / "learning.png").exists()
    same(run_results.load(tmp_path), whole)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_what_is_ignored_stays_ignored_as_nohup_wants_it(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals() as request:
            signal.raise_signal(number)
            assert not request
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_ctrl_c_in_the_background_is_taken():
    """Shells ignore SIGINT for jobs that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as request:
            signal.raise_signal(signal.SIGINT)
            assert request
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_handlers(whole, tmp_path):
    config, statuses = tiny_digits(num_tasks=3, checkpoint_every=100), []

    def train():
        statuses.append(command_line.train(config, tmp_path, MAKE_PROBLEM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert statuses == [0]
    same(run_results.load(tmp_path), whole)


@pytest.mark.parametrize(
    ("seconds", "saved"), [(10**9, ["backprop/3"]), (0, ["backprop/2", "backprop/3"])]
)
def test_a_checkpoint_is_written_when_its_time_has_come(
    tmp_path, monkeypatch, seconds, saved
):
    saves = during(monkeypatch, runner.Checkpointer, "save", lambda: None)
    cases = {"backprop": {"method": "backprop"}}
    monkeypatch.setattr(signals, "_LEAST_SAVES_APART", 0)
    run(tmp_path, checkpoint_seconds=seconds, cases=cases)
    assert len(saves) == (3 if seconds == 0 else 1)
    assert checkpoints(tmp_path) == saved


def test_the_clock_saves_after_a_long_task_and_tells_what_a_kill_loses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    clock = SaveClock("case", 5, seconds=20)
    assert clock.outlook() == ""

    def task(seconds):
        with clock.task():
            now[0] += seconds

    with clock.task():
        assert "Task 5 of case 'case' ends first (time unknown" in clock.outlook()
        now[0] += 12
    assert not clock.is_due()
    with clock.task():
        now[0] += 5
        assert "(about 7 s more)" in clock.outlook()
        assert "loses this task and 1 before it." in clock.outlook()
        now[0] += 5
    assert clock.is_due()
    with clock.save():
        now[0] += 3
    with clock.task():
        assert "which took 3.0 s the last time. A kill" in clock.outlook()
        assert "loses this task." in clock.outlook()
        now[0] += 25
    # A checkpoint that takes 3 seconds is worth 30 seconds of training.
    assert not clock.is_due()
    task(5)
    assert clock.is_due()

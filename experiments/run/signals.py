"""How a run stops: asked by a signal, and with as little lost as possible."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading
import time
from typing import Any

from experiments.run.messages import say

# Ctrl-C, schedulers and terminals that close. SIGQUIT (Ctrl-\) still kills at once.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_LEAST_SAVES_APART = 10


class StopRequest:
    """Whether a signal has asked the run to stop after its task."""

    def __init__(self) -> None:
        self.outlook: Callable[[], str] = str  # What the run adds to the message.
        self._received: list[int] = []
        self._can_interrupt = False

    def __bool__(self) -> bool:
        """Whether it has."""
        return bool(self._received)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a second Ctrl-C raise KeyboardInterrupt here, where nothing is saved."""
        self._can_interrupt = True
        try:
            yield
        finally:
            self._can_interrupt = False

    def handle(self, number: int, frame: Any) -> None:
        """The handler of all signals.

        Raises:
          KeyboardInterrupt: the second Ctrl-C, inside `at_once` only. Schedulers repeat
            the other signals, and mean the same.
        """
        del frame
        is_second = number == signal.SIGINT and number in self._received
        if is_second and self._can_interrupt:
            raise KeyboardInterrupt
        is_first = not self._received
        self._received.append(number)
        if is_first:
            name = signal.Signals(number).name
            say(f"{name} received: stopping as soon as all is saved. {self.outlook()}")


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Takes the signals that ask a program to stop, as long as the context lasts.

    What is ignored stays so (nohup ignores SIGHUP), but for SIGINT, which shells ignore
    for all jobs in the background. Only the main thread can handle signals: in another
    one the request is never set.
    """
    request = StopRequest()
    old = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # Not every system has them all.
                handler = number and signal.getsignal(number)
                is_ignored = handler == signal.SIG_IGN and number != signal.SIGINT
                # None is a handler of another language, which cannot be put back.
                if handler is not None and not is_ignored:
                    old[number] = signal.signal(number, request.handle)
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class SaveClock:
    """Times the tasks and checkpoints of a case, and tells what a kill would lose.

    Args:
      case: name of the case.
      tasks_done: those that its last checkpoint holds.
      seconds: after which a checkpoint is due.
    """

    def __init__(self, case: str, tasks_done: int, seconds: float):
        self._case = case
        self._seconds = seconds
        self._tasks_done = self._tasks_saved = tasks_done
        self._saved_at = time.monotonic()
        self._save_seconds: float | None = None
        self._task_began: float | None = None
        self._task_seconds: float | None = None

    @contextlib.contextmanager
    def task(self) -> Iterator[None]:
        """Times a task."""
        self._task_began = time.monotonic()
        yield
        self._task_seconds = time.monotonic() - self._task_began
        self._task_began = None
        self._tasks_done += 1

    @contextlib.contextmanager
    def save(self) -> Iterator[None]:
        """Times a checkpoint."""
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began
        self._tasks_saved = self._tasks_done

    def is_due(self) -> bool:
        """Whether to save, so that a kill inside the next task loses little before it.

        Where that would cost more than a tenth of the time, it is put off.
        """
        waited = time.monotonic() - self._saved_at
        saving = self._save_seconds or 0
        return waited >= max(self._seconds, _LEAST_SAVES_APART * saving)

    def outlook(self) -> str:
        """Says how long it takes to stop, and what is lost if that is too long."""
        saving = "then it is saved"
        if self._save_seconds is not None:
            saving += f", which took {self._save_seconds:.1f} s the last time"
        if self._task_began is None:
            return ""
        left = "the time is not known before one is done"
        if self._task_seconds is not None:
            passed = time.monotonic() - self._task_began
            left = f"about {max(self._task_seconds - passed, 0):.0f} s more"
        lost = "this task"
        if unsaved := self._tasks_done - self._tasks_saved:
            lost += f" and {unsaved} before it"
        return (
            f"Task {self._tasks_done} of case {self._case!r} ends first ({left}), "
            f"{saving}. A kill before loses {lost}; so does another Ctrl-C, at once."
        )

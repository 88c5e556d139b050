"""Stops a run at a signal, with as little lost as possible."""

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading
import time
from typing import Any

from experiments.run.messages import say

# From Ctrl-C, schedulers and closing terminals. SIGQUIT (Ctrl-\) still kills at once.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_LEAST_SAVES_APART = 10


class StopRequest:
    """Whether a signal has asked the run to stop after its task."""

    def __init__(self) -> None:
        self.outlook: Callable[[], str] = str  # Text that the run adds to the message.
        self._received: list[int] = []
        self._can_interrupt = False

    def __bool__(self) -> bool:
        """Whether a signal has been received."""
        return bool(self._received)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a second Ctrl-C raise KeyboardInterrupt inside the context."""
        self._can_interrupt = True
        try:
            yield
        finally:
            self._can_interrupt = False

    def handle(self, number: int, frame: Any) -> None:
        """The handler of all signals.

        Raises:
          KeyboardInterrupt: this is the second Ctrl-C, inside `at_once`. Other signals
            do not raise it, because schedulers repeat them.
        """
        del frame
        is_second = number == signal.SIGINT and number in self._received
        if is_second and self._can_interrupt:
            raise KeyboardInterrupt
        is_first = not self._received
        self._received.append(number)
        if is_first:
            name = signal.Signals(number).name
            say(f"{name} received: stopping after the next save. {self.outlook()}")


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handles the signals that ask a program to stop, inside the context.

    Signals that are ignored stay ignored (nohup ignores SIGHUP), except for SIGINT,
    which shells ignore for all background jobs. Only the main thread can handle
    signals; in other threads the request is never set.
    """
    request = StopRequest()
    old = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # Not every system has them all.
                handler = number and signal.getsignal(number)
                is_ignored = handler == signal.SIG_IGN and number != signal.SIGINT
                # None is a handler not set from Python, which cannot be restored.
                if handler is not None and not is_ignored:
                    old[number] = signal.signal(number, request.handle)
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class SaveClock:
    """Times the tasks and checkpoints of a case, and says what a kill would lose.

    Args:
      case: name of the case.
      tasks_done: number of tasks in its last checkpoint.
      seconds: seconds after which a checkpoint is due.
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
        """Whether to save, so that a kill during the next task loses little.

        Saving is postponed while it would take more than a tenth of the time.
        """
        waited = time.monotonic() - self._saved_at
        saving = self._save_seconds or 0
        return waited >= max(self._seconds, _LEAST_SAVES_APART * saving)

    def outlook(self) -> str:
        """Says how long stopping takes, and what a kill before then would lose."""
        saving = "then it is saved"
        if self._save_seconds is not None:
            saving += f", which took {self._save_seconds:.1f} s the last time"
        if self._task_began is None:
            return ""
        left = "time unknown before the first task is done"
        if self._task_seconds is not None:
            passed = time.monotonic() - self._task_began
            left = f"about {max(self._task_seconds - passed, 0):.0f} s more"
        lost = "this task"
        if unsaved := self._tasks_done - self._tasks_saved:
            lost += f" and {unsaved} before it"
        return (
            f"Task {self._tasks_done} of case {self._case!r} ends first ({left}), "
            f"{saving}. A kill before then loses {lost}. Another Ctrl-C stops at once "
            "and loses the same."
        )

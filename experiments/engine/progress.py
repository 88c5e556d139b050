"""How far a case has come: what it has measured, and the time it took.

Shapes: L lanes, T tasks.
"""

from typing import Any

import numpy as np


class CaseProgress:
    """Metrics of the tasks that a case has done, and the time they took."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[np.ndarray]] = {}  # One array [L, ...] per task.
        self.timed_steps = 0.0
        self.timed_seconds = 0.0  # Without tasks that compiled.
        self.block = 0  # Lanes per block; 0 before it is chosen.

    @property
    def num_tasks(self) -> int:
        """Tasks done."""
        return len(next(iter(self.metrics.values()))) if self.metrics else 0

    @property
    def num_lanes(self) -> int:
        """L, 0 before the first task."""
        return len(next(iter(self.metrics.values()))[0]) if self.metrics else 0

    @property
    def steps_per_second(self) -> float:
        """Updates per second over all lanes; NaN before any task was timed."""
        return self.timed_steps / self.timed_seconds if self.timed_seconds else np.nan

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds the metrics [L, ...] of a task."""
        for name, values in metrics.items():
            self.metrics.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the metrics as arrays [L, T, ...]."""
        return {name: np.stack(values, axis=1) for name, values in self.metrics.items()}

    def to_tree(self) -> dict[str, Any]:
        """Returns all of it as a nested dict of arrays."""
        other = [self.timed_steps, self.timed_seconds, self.block]
        return {"metrics": self.arrays(), "other": np.array(other, np.float64)}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "CaseProgress":
        """Undoes `to_tree`."""
        progress = cls()
        progress.metrics = {
            name: list(np.moveaxis(values, 1, 0))
            for name, values in tree["metrics"].items()
        }
        progress.timed_steps, progress.timed_seconds = map(float, tree["other"][:2])
        progress.block = int(tree["other"][2])
        return progress

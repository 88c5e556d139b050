"""How far a case has come: what it has measured, and the time it took.

Shapes: L lanes, T tasks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


class CaseProgress:
    """Metrics of the tasks that a case has done, and the time they took."""

    def __init__(self) -> None:
        # Blocks of tasks one after the other, arrays [L, T, ...].
        self._saved: list[Mapping[str, np.ndarray]] = []
        self._unsaved: list[Mapping[str, np.ndarray]] = []
        self.num_tasks = 0  # Tasks done.
        self.timed_steps = 0.0
        self.timed_seconds = 0.0  # Without tasks that compiled.
        self.block = 0  # Lanes per block; 0 before it is chosen.

    @property
    def num_lanes(self) -> int:
        """L, 0 before the first task."""
        arrays = self.arrays()
        return len(next(iter(arrays.values()))) if arrays else 0

    @property
    def steps_per_second(self) -> float:
        """Updates per second over all lanes; NaN before any task was timed."""
        return self.timed_steps / self.timed_seconds if self.timed_seconds else np.nan

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics [L, ...] of a task.

        Raises:
          ValueError: they are not those of the tasks before, as after a change of the
            code.
        """
        block = {name: values[:, None] for name, values in metrics.items()}
        for before in (*self._saved[:1], *self._unsaved[:1]):
            _check_alike(before, block)
        self._unsaved.append(block)
        self.num_tasks += 1

    def unsaved(self) -> dict[str, np.ndarray]:
        """Returns the metrics [L, T, ...] of the tasks since `mark_saved`."""
        return _join(self._unsaved)

    def mark_saved(self) -> None:
        """Notes that what `unsaved` has returned is saved."""
        self._saved += [_join(self._unsaved)] if self._unsaved else []
        self._unsaved = []

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the metrics of all tasks as arrays [L, T, ...]."""
        self._saved = [_join(self._saved)] if self._saved else []
        return _join([*self._saved, *self._unsaved])

    def to_tree(self) -> dict[str, Any]:
        """Returns all but the metrics as a dict of arrays."""
        other = [self.timed_steps, self.timed_seconds, self.block]
        return {"other": np.array(other, np.float64)}

    @classmethod
    def from_tree(
        cls, tree: Mapping[str, Any], blocks: Iterable[Mapping[str, np.ndarray]]
    ) -> "CaseProgress":
        """Undoes `to_tree`.

        Args:
          tree: from `to_tree`. Checkpoints written until November 2026 hold the metrics
            as well; these are saved anew.
          blocks: what was saved of `unsaved`, in order.
        """
        progress = cls()
        progress._saved = list(blocks)
        progress._unsaved = [tree["metrics"]] if tree.get("metrics") else []
        for block in (*progress._saved, *progress._unsaved):
            progress.num_tasks += next(iter(block.values())).shape[1]
        progress.timed_steps, progress.timed_seconds = map(float, tree["other"][:2])
        progress.block = int(tree["other"][2])
        return progress


def _join(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Lays blocks of tasks one behind the other."""
    if not blocks:
        return {}
    return {
        name: np.concatenate([block[name] for block in blocks], axis=1)
        for name in blocks[0]
    }


def _check_alike(
    before: Mapping[str, np.ndarray], block: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError unless two blocks hold metrics of the same shapes."""
    one, two = (
        {name: (values.shape[0], *values.shape[2:]) for name, values in each.items()}
        for each in (before, block)
    )
    differing = sorted(name for name, _ in one.items() ^ two.items())
    if differing:
        raise ValueError(
            "The tasks done so far measured something else than this one: "
            f"{', '.join(dict.fromkeys(differing))} differ, because the code has "
            "changed. Go on with the code of those tasks, pass --overwrite to start "
            "anew, or another --workdir."
        )

"""The CSV file of replacements, which a run writes if its config says so."""

from collections.abc import Mapping, Sequence
import csv
import itertools
import os
import pathlib
from types import MappingProxyType

import numpy as np

from experiments.learning.replacement_log import ENTRY_FIELDS, ReplacementLog
from experiments.reporting.files import REPLACEMENTS_FILE
from experiments.run.config import setting_at


class LogFile:
    """The CSV file of a run, with one line per replacement, in the order of writing.

    Columns: case, task, each swept hyperparameter, seed, then `step` (updates since
    the start of the task), `layer`, `unit`, `age` (updates since its last reset) and
    `utility` (age-corrected, of the previous step; nan if the rule has no utilities).

    A hyperparameter that a case does not sweep is empty in the lines of that case.

    Args:
      folder: the run folder.
      swept: all hyperparameters that some case of the run sweeps.
    """

    def __init__(self, folder: pathlib.Path, swept: Sequence[str] = ()):
        self._path = folder / REPLACEMENTS_FILE
        self._swept = swept

    def append(
        self,
        case: str,
        task: int,
        coordinates: Mapping[str, np.ndarray],
        layers: Sequence[str],
        log: ReplacementLog,
        trials: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> int:
        """Writes the entries of a task.

        Args:
          case: name of the case.
          task: its number.
          coordinates: see `LaneGrid`.
          layers: names of the hidden layers.
          log: arrays with a leading axis of L lanes.
          trials: see `LaneGrid`.

        Returns:
          The number of entries that did not fit into the log.
        """
        is_new = not self._path.exists()
        capacity = log.step.shape[1]
        entries = log
        if log.utility is None:
            entries = log._replace(utility=np.full(log.step.shape, np.nan))
        swept = [name for name in coordinates if name not in ("trial", "seed")]
        names = [*dict.fromkeys((*self._swept, *swept, *trials)), "seed"]
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("case", "task", *names, *ENTRY_FIELDS))
            for lane, point in enumerate(itertools.product(*coordinates.values())):
                values = setting_at(dict(zip(coordinates, point, strict=True)), trials)
                place = [values.get(name, "") for name in names]
                columns = [
                    getattr(entries, field)[lane, : log.count[lane]].tolist()
                    for field in ENTRY_FIELDS
                ]
                for step, layer, *entry in zip(*columns, strict=True):
                    writer.writerow((case, task, *place, step, layers[layer], *entry))
        return int(np.maximum(log.count - capacity, 0).sum())

    def forget_after(self, tasks_done: Mapping[str, int]) -> None:
        """Deletes the lines of tasks that are not in a checkpoint.

        Args:
          tasks_done: number of tasks in each case's checkpoint.
        """
        if not self._path.exists():
            return
        kept = self._path.with_name(f".{self._path.name}")
        with self._path.open(newline="") as file, kept.open("w", newline="") as copy:
            header = file.readline()
            copy.write(header)
            num_columns = len(next(csv.reader([header]), ()))
            for line in file:
                fields = next(csv.reader([line]))
                # The last line of a killed run may be cut off.
                is_whole = line.endswith("\n") and len(fields) == num_columns
                if is_whole and int(fields[1]) < tasks_done.get(fields[0], 0):
                    copy.write(line)
        if any(tasks_done.values()):
            os.replace(kept, self._path)
        else:
            kept.unlink()
            self._path.unlink()

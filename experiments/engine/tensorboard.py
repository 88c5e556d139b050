"""TensorBoard event files of a run, one line for each setting: means over seeds."""

from collections.abc import Mapping
import itertools
import math
import pathlib

import numpy as np

from experiments.engine.cases import Case
from experiments.reporting.run_results import BY_EPOCH

TENSORBOARD_FOLDER = "tensorboard"


class EventWriter:
    """Writes the metrics of a case to `tensorboard/CASE, SETTING` in a run folder.

    Args:
      folder: the run folder.
      case: the case.
      first_task: what earlier runs have written from this task on is forgotten.

    Raises:
      ImportError: tensorboardX is not installed; the message says how to.
    """

    def __init__(self, folder: pathlib.Path, case: Case, first_task: int):
        check_installed()
        from tensorboardX import SummaryWriter

        *swept, _ = case.grid.coordinates
        self._layers = case.problem.learner.layers
        self._num_seeds = case.grid.shape[-1]
        self._writers = []
        for point in itertools.product(
            *(case.grid.coordinates[name] for name in swept)
        ):
            values = (
                f"{name} {value:g}" for name, value in zip(swept, point, strict=True)
            )
            self._writers.append(
                SummaryWriter(
                    str(folder / TENSORBOARD_FOLDER / ", ".join((case.name, *values))),
                    purge_step=first_task,
                )
            )

    def add(self, task: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of a task, [L] or [L, layers or epochs]; NaN is left out."""
        for name, values in metrics.items():
            values = values.reshape(len(self._writers), self._num_seeds, -1)
            for writer, setting in zip(self._writers, values, strict=True):
                for layer, seeds in enumerate(setting.T):
                    tag = name
                    if setting.shape[1] > 1:
                        by_epoch = name.endswith(BY_EPOCH)
                        tag += f"/{layer if by_epoch else self._layers[layer]}"
                    finite = seeds[np.isfinite(seeds)]
                    if finite.size:
                        writer.add_scalar(tag, math.fsum(finite) / finite.size, task)

    def close(self) -> None:
        """Writes what is left to the files."""
        for writer in self._writers:
            writer.close()


def check_installed() -> None:
    """Raises the ImportError of `EventWriter` before anything runs."""
    try:
        import tensorboardX as _  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "config.tensorboard needs tensorboardX: pip install '.[tensorboard]', or "
            "--config.tensorboard=false."
        ) from error

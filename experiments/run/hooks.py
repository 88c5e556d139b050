"""Hooks, called after each task: those of users, TensorBoard, Weights & Biases.

A hook gets copies of the results, so that it cannot change the run. If it raises an
exception, the run saves its progress and stops.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import importlib
import itertools
import math
import os
import pathlib
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.learning.checks import ConfigError
from experiments.run import distributed
from experiments.run.cases import Case
from experiments.run.config import setting_at
from experiments.run.messages import say


class TaskResult(NamedTuple):
    """Metrics of one task, for all lanes of a case.

    Attributes:
      case: name of the case.
      task: the index of the task, from 0.
      coordinates: the values of each swept hyperparameter, float64, by name, then
        "seed", uint32: the leading axes of all metrics. For a search, "trial" comes
        before "seed".
      layers: names of the layers in forward order, the head last.
      metrics: arrays by name, `[swept ..., seed]`, with a last axis if there is one
        number for each of `layers` or, for names that end in `_by_epoch`, for each
        epoch. NaN where a lane has diverged or nothing was measured.
      trials: the values of each searched hyperparameter, float64 [trials], by name.
    """

    case: str
    task: int
    coordinates: dict[str, np.ndarray]
    layers: tuple[str, ...]
    metrics: dict[str, np.ndarray]
    trials: Mapping[str, np.ndarray] = MappingProxyType({})


Hook = Callable[[TaskResult], Any]
"""Called after each task; its `close()`, if any, is called at the end of the run."""


class HookError(RuntimeError):
    """A hook raised an exception; the results so far are saved."""


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Raises ConfigError unless the hooks are a sequence of functions."""
    if not isinstance(hooks, Sequence) or isinstance(hooks, str):
        raise ConfigError(f"hooks is {hooks!r}: pass a list, as in hooks=[report].")
    for hook in hooks:
        if not callable(hook):
            raise ConfigError(
                f"hooks contains {hook!r}, which is not callable: pass functions that "
                "take a TaskResult."
            )


class Hooks:
    """The hooks of a run, called by its first process only."""

    def __init__(self, hooks: Sequence[Hook]):
        self._hooks = hooks if distributed.is_first() else ()

    def call(
        self, case: Case, task: int, metrics: Mapping[str, np.ndarray]
    ) -> HookError | None:
        """Calls all hooks with the metrics `[L, ...]` of a task.

        Returns:
          The error of the first hook that raised an exception; no more are called.
        """
        for hook in self._hooks:
            try:
                hook(_result(case, task, metrics))
            except Exception as error:
                failed = HookError(
                    f"{_name(hook)} raised {type(error).__name__} after task {task} of "
                    f"case {case.name!r}: {error}. The results up to this task are "
                    "saved. Fix or remove the hook; then the same command continues "
                    "from the next task."
                )
                failed.__cause__ = error
                return failed
        return None

    def close(self) -> None:
        """Closes all hooks that can be closed."""
        for hook in self._hooks:
            try:
                getattr(hook, "close", lambda: None)()
            except Exception as error:
                say(f"{_name(hook)} failed to close: {type(error).__name__}: {error}")


def load_hook(path: str) -> Hook:
    """Imports the hook that a flag names.

    Args:
      path: `MODULE:NAME`.

    Raises:
      ConfigError: it cannot be imported or called.
    """
    module, _, name = path.partition(":")
    try:
        hook = getattr(importlib.import_module(module), name or "hook")
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--hook={path} cannot be imported: {error}. Name a function in an "
            "importable module: --hook=MODULE:FUNCTION."
        ) from error
    if not callable(hook):
        raise ConfigError(
            f"--hook={path} is {hook!r}, which is not callable: name a function."
        )
    return hook


def hooks_of(config: Any, folder: pathlib.Path) -> list[Hook]:
    """Returns the hooks that a config enables.

    Args:
      config: a config with `tensorboard` and `wandb`.
      folder: the run folder.

    Raises:
      ImportError: a package is not installed; the message says how to install it.
    """
    hooks: list[Hook] = []
    if config.get("tensorboard"):
        hooks.append(TensorBoard(folder))
    if config.get("wandb"):
        hooks.append(WeightsAndBiases(folder, config.to_dict()))
    return hooks


TENSORBOARD_FOLDER = "tensorboard"


class TensorBoard:
    """Writes means over seeds to `tensorboard/CASE, SETTING` in a run folder.

    They replace what earlier runs wrote there for the same and later tasks.

    Args:
      folder: the run folder.

    Raises:
      ImportError: tensorboardX is not installed; the message says how to install it.
    """

    def __init__(self, folder: pathlib.Path):
        _import_extra("tensorboardX", "tensorboard")
        self._folder = folder / TENSORBOARD_FOLDER
        self._case = None
        self._writers: dict[str, Any] = {}

    def __call__(self, result: TaskResult) -> None:
        """Adds the scalars of a task to the files of its case."""
        from tensorboardX import SummaryWriter

        if result.case != self._case:
            self.close()
            self._case = result.case
        for name, numbers in scalars(result):
            if name not in self._writers:
                self._writers[name] = SummaryWriter(
                    str(self._folder / name), purge_step=result.task
                )
            for tag, number in numbers.items():
                self._writers[name].add_scalar(tag, number, result.task)

    def close(self) -> None:
        """Writes the remaining data to the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class WeightsAndBiases:
    """Logs means over seeds to Weights & Biases, as one run per case and setting.

    The project is `cbp_jax` unless WANDB_PROJECT is set, the group is the run folder,
    and the step is the task. A resumed run logs to new runs of the same names.

    Args:
      folder: the run folder.
      config: the run's config, which is shown with the curves.

    Raises:
      ImportError: wandb is not installed; the message says how to install it.
    """

    def __init__(self, folder: pathlib.Path, config: Mapping[str, Any]):
        self._wandb = _import_extra("wandb", "wandb")
        self._group = str(folder)
        self._config = config
        self._case = None
        self._runs: dict[str, Any] = {}

    def __call__(self, result: TaskResult) -> None:
        """Logs the scalars of a task."""
        if result.case != self._case:
            self.close()
            self._case = result.case
        for name, numbers in scalars(result):
            if name not in self._runs:
                self._runs[name] = self._start(name, result.case)
            self._runs[name].log(numbers, step=result.task)

    def close(self) -> None:
        """Ends the runs, which uploads the remaining data."""
        for run in self._runs.values():
            run.finish()
        self._runs = {}

    def _start(self, name: str, case: str) -> Any:
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cbp_jax"),
            group=self._group,
            name=name,
            config={**self._config, "case": case},
            reinit="create_new",  # The runs of several settings are open at once.
        )


def scalars(result: TaskResult) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields means over seeds, without NaN, for each point of a case's sweep.

    Yields:
      The name of the case and its setting, as in "backprop, step_size 0.1", and the
      numbers by name, `dead_units/dense_0` for those of a layer.
    """
    # It imports xarray and pandas, which are slow.
    from experiments.reporting.run_results import BY_EPOCH

    *swept, _ = result.coordinates
    points = itertools.product(*(result.coordinates[name] for name in swept))
    shape = tuple(map(len, result.coordinates.values()))
    for index, point in enumerate(points):
        setting = setting_at(dict(zip(swept, point, strict=True)), result.trials)
        values = [f"{name} {one:g}" for name, one in setting.items()]
        numbers = {}
        for name, metric in result.metrics.items():
            seeds = metric.reshape(-1, shape[-1], *metric.shape[len(shape) :])[index]
            columns = seeds.reshape(shape[-1], -1).T
            for place, column in enumerate(columns):
                tag = name
                if len(columns) > 1:
                    by_epoch = name.endswith(BY_EPOCH)
                    tag += f"/{place if by_epoch else result.layers[place]}"
                finite = column[np.isfinite(column)]
                if finite.size:
                    numbers[tag] = math.fsum(finite) / finite.size
        yield ", ".join((result.case, *values)), numbers


def _result(case: Case, task: int, metrics: Mapping[str, np.ndarray]) -> TaskResult:
    """Copies the metrics `[L, ...]` of a task."""
    shape = case.grid.shape
    return TaskResult(
        case=case.name,
        task=task,
        coordinates={
            name: values.copy() for name, values in case.grid.coordinates.items()
        },
        layers=tuple(case.problem.learner.layers),
        metrics={
            name: values.reshape(*shape, *values.shape[1:]).copy()
            for name, values in metrics.items()
        },
        trials={name: values.copy() for name, values in case.grid.trials.items()},
    )


def _name(hook: Hook) -> str:
    return f"The hook {getattr(hook, '__name__', type(hook).__name__)}"


def _import_extra(package: str, extra: str) -> Any:
    """Imports a package that only an extra installs.

    Args:
      package: its name.
      extra: name of the extra in pyproject.toml and of the config field that needs it.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"config.{extra} needs {package}, which is not installed: run pip install "
            f"'.[{extra}]', or pass --config.{extra}=false."
        ) from error

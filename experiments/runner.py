"""The loop over cases and tasks: compile, train, measure, save, resume.

Shapes: L lanes, T tasks.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import platform
import signal
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np
from tqdm import tqdm
import xarray as xr

import cbp_jax
from experiments import checkpoints, configuration, results
from experiments.cases import Case, Program, prepare_cases
from experiments.problem import Problem
from experiments.run_folder import open_folder


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved what it had."""


class _Progress(NamedTuple):
    """History of a case: metrics [L, T, ...] and the time they took."""

    metrics: dict[str, list[np.ndarray]]  # One array [L, ...] for each task.
    timed_steps: float
    timed_seconds: float  # Without the tasks that compiled.


def run(
    config: Any,
    folder: pathlib.Path,
    make_problem: Callable[[Any], Problem],
    *,
    overwrite: bool = False,
) -> xr.Dataset:
    """Trains all cases, or goes on where a killed run of the same config stopped.

    Args:
      config: the run's config.
      folder: the run folder; holds `results.nc`, `config.json` and `checkpoints/`.
      make_problem: builds a problem from the config of a case.
      overwrite: delete what the folder holds and start anew.

    Returns:
      The results, see `results.case_dataset`.

    Raises:
      ValueError: a config that cannot be run.
      RunFolderError: the folder holds a run of another config.
      Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
    """
    cases = prepare_cases(config, make_problem)
    open_folder(folder, configuration.to_json(config), overwrite)
    checkpointer = checkpoints.Checkpointer(folder)
    try:
        return _Run(config, folder, cases, checkpointer).run()
    finally:
        checkpointer.close()


class _Run:
    """The state of `run` on the host."""

    def __init__(
        self,
        config: Any,
        folder: pathlib.Path,
        cases: list[Case],
        checkpointer: checkpoints.Checkpointer,
    ):
        self._config = config
        self._folder = folder
        self._cases = cases
        self._checkpointer = checkpointer
        self._progress = {case.name: _Progress({}, 0.0, 0.0) for case in cases}
        self._saved_state: dict[str, np.ndarray] | None = None
        self._restore()

    def run(self) -> xr.Dataset:
        lane_steps = [
            case.config.num_tasks * case.steps_per_task for case in self._cases
        ]
        with (
            _stop_signals() as stop,
            tqdm(
                total=sum(lane_steps),
                initial=sum(
                    self._tasks_done(case) * case.steps_per_task for case in self._cases
                ),
                unit="step",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.5,
            ) as bar,
        ):
            for case in self._cases:
                self._run_case(case, bar, stop)
        return self._save_results()

    def _run_case(self, case: Case, bar: tqdm, stop: list[int]) -> None:
        steps = case.steps_per_task
        done = self._tasks_done(case)
        if done == case.config.num_tasks:
            return
        bar.set_description(case.name)
        program = Program(case)
        state = program.start(self._saved_state)
        self._saved_state = None
        for task in range(done, case.config.num_tasks):
            start = time.perf_counter()
            state, metrics = program.run_task(state, task)
            has_compiled = task == done
            self._record(
                case, metrics, steps, time.perf_counter() - start, has_compiled
            )
            score = metrics.get("accuracy", metrics.get("error"))
            if not np.isnan(score).all():
                bar.set_postfix(score=f"{np.nanmean(score):.4f}", refresh=False)
            bar.update(steps)
            is_due = (task + 1) % self._config.checkpoint_every == 0
            if stop or is_due or task + 1 == case.config.num_tasks:
                self._save(program.fetch(state))
            if stop:
                raise Interrupted(
                    f"Stopped by {signal.Signals(stop[0]).name} after task {task} of "
                    f"case {case.name!r}. The same command goes on from there."
                )

    def _record(
        self,
        case: Case,
        metrics: dict[str, np.ndarray],
        steps: int,
        seconds: float,
        has_compiled: bool,
    ) -> None:
        progress = self._progress[case.name]
        for name, values in metrics.items():
            progress.metrics.setdefault(name, []).append(values)
        if not has_compiled or case.config.num_tasks == 1:
            self._progress[case.name] = progress._replace(
                timed_steps=progress.timed_steps + steps,
                timed_seconds=progress.timed_seconds + seconds,
            )

    def _save(self, state: dict[str, np.ndarray]) -> None:
        history = {
            name: {
                "metrics": {
                    metric: np.stack(values, axis=1)
                    for metric, values in progress.metrics.items()
                },
                "timed": np.array([progress.timed_steps, progress.timed_seconds]),
            }
            for name, progress in self._progress.items()
            if progress.metrics
        }
        step = sum(self._tasks_done(case) for case in self._cases)
        self._checkpointer.save(step, {"state": state, "history": history})

    def _restore(self) -> None:
        saved = self._checkpointer.restore()
        if saved is None:
            return
        for name, history in saved["history"].items():
            metrics = {
                metric: list(np.moveaxis(values, 1, 0))
                for metric, values in history["metrics"].items()
            }
            self._progress[name] = _Progress(metrics, *map(float, history["timed"]))
        case = [case for case in self._cases if self._progress[case.name].metrics][-1]
        if self._tasks_done(case) < case.config.num_tasks:
            self._saved_state = saved["state"]
        logging.info(
            "Going on after task %d of %s", self._tasks_done(case) - 1, case.name
        )

    def _tasks_done(self, case: Case) -> int:
        metrics = self._progress[case.name].metrics
        return len(next(iter(metrics.values()))) if metrics else 0

    def _save_results(self) -> xr.Dataset:
        datasets = []
        for case in self._cases:
            progress = self._progress[case.name]
            datasets.append(
                results.case_dataset(
                    case.name,
                    case.grid.coordinates,
                    case.problem.learner.layers,
                    {
                        metric: np.stack(values, axis=1)
                        for metric, values in progress.metrics.items()
                    },
                    case.problem.learner.layer_sizes,
                    case.problem.examples_per_task,
                    progress.timed_steps / max(progress.timed_seconds, 1e-9),
                )
            )
        dataset = results.join_cases(
            datasets,
            {
                "config": configuration.to_json(self._config),
                "versions": json.dumps(_versions()),
                "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            },
        )
        results.save(dataset, self._folder)
        return dataset


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list; a second SIGINT interrupts at once."""
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)
        tqdm.write("Stopping after this task. Press Ctrl-C again to stop at once.")

    old = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _versions() -> dict[str, str]:
    return {
        "cbp_jax": cbp_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }

"""The loop over cases and tasks: train, measure, save, resume."""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import platform
import signal
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm
import xarray as xr

import cbp_jax
from experiments.engine import configuration, distributed, numerics, tensorboard
from experiments.engine.blocks import choose_block
from experiments.engine.cases import Case, CompiledCase, prepare_cases
from experiments.engine.checkpoints import Checkpointer
from experiments.engine.log_file import LogFile
from experiments.engine.progress import CaseProgress
from experiments.engine.run_folder import RunFolderError, open_folder
from experiments.learning.problem import Problem
from experiments.learning.replacement_log import ReplacementLog
from experiments.reporting import run_results


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved what it had."""


def run(
    config: Any,
    folder: pathlib.Path,
    make_problem: Callable[[Any], Problem],
    *,
    overwrite: bool = False,
) -> xr.Dataset:
    """Trains all cases, or goes on where a killed or shorter run of the config stopped.

    Args:
      config: the run's config.
      folder: the run folder; holds `results.nc`, `config.json`, `checkpoints/`, and
        what `config.replacement_log` and `config.tensorboard` switch on. With several
        processes it must be the same folder for all.
      make_problem: builds a problem from the config of a case.
      overwrite: delete the run that the folder holds and start anew.

    Returns:
      The results, see `run_results.case_dataset`.

    Raises:
      ValueError: a config that cannot be run.
      RunFolderError: the folder holds a run of another config or version, one that is
        not over, or something else.
      CheckpointError: a checkpoint cannot be written, and the last one is whole; or all
        of a case are damaged.
      Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
    """
    config = configuration.complete(config)
    cases = prepare_cases(config, make_problem)
    if config.tensorboard:
        tensorboard.check_installed()
    with _opened(folder, configuration.to_json(config), overwrite):
        one_run = _Run(config, folder, cases, make_problem)
        try:
            return one_run.run()
        finally:
            one_run.close()


@contextlib.contextmanager
def _opened(folder: pathlib.Path, config: str, overwrite: bool) -> Iterator[None]:
    """Opens the run folder in the first process; all fail if it cannot."""
    with contextlib.ExitStack() as stack:
        error = None
        if distributed.is_first():
            try:
                stack.enter_context(open_folder(folder, config, overwrite))
            except (OSError, ValueError) as caught:
                error = caught
        if distributed.any_process(error is not None):
            raise error or RunFolderError("Process 0 says why it cannot start.")
        yield


class _Run:
    """A run on the host: what is done, and where it is written."""

    def __init__(
        self,
        config: Any,
        folder: pathlib.Path,
        cases: list[Case],
        make_problem: Callable[[Any], Problem],
    ):
        self._config = config
        self._folder = folder
        self._cases = cases
        self._make_problem = make_problem
        swept = (name for case in cases for name in case.grid.coordinates)
        self._log_file = LogFile(folder, list(dict.fromkeys(swept)))
        self._progress = {case.name: CaseProgress() for case in cases}
        self._checkpointers = {
            case.name: Checkpointer(folder, case.name) for case in cases
        }
        self._saved_states: dict[str, dict[str, np.ndarray]] = {}

    def close(self) -> None:
        for checkpointer in self._checkpointers.values():
            checkpointer.close()

    def run(self) -> xr.Dataset:
        self._restore()
        done = [self._tasks_done(case) * case.steps_per_task for case in self._cases]
        total = [case.config.num_tasks * case.steps_per_task for case in self._cases]
        with (
            _stop_signals() as stop,
            tqdm(
                total=sum(total),
                initial=sum(done),
                unit="step",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.5,
                disable=not distributed.is_first(),
            ) as bar,
        ):
            for case in self._cases:
                if self._tasks_done(case) < case.config.num_tasks:
                    self._run_case(case, bar, stop)
        return self._save_results()

    def _run_case(self, case: Case, bar: tqdm, stop: list[int]) -> None:
        bar.set_description(case.name)
        progress = self._progress[case.name]
        first_task = progress.num_tasks
        progress.block = progress.block or choose_block(case, self._make_problem)
        compiled = CompiledCase(case, progress.block)
        state = compiled.start(self._saved_states.pop(case.name, None))
        with self._event_writer(case, first_task) as events:
            for task in range(first_task, case.config.num_tasks):
                start = time.perf_counter()
                state, metrics, log = compiled.run_task(state, task)
                if task > first_task:
                    progress.timed_seconds += time.perf_counter() - start
                    progress.timed_steps += case.steps_per_task
                progress.add(metrics)
                self._write(case, task, metrics, log, events)
                _show(bar, metrics)
                bar.update(case.steps_per_task)
                must_stop = distributed.any_process(bool(stop))
                is_due = (task + 1) % self._config.checkpoint_every == 0
                if must_stop or is_due or task + 1 == case.config.num_tasks:
                    self._save(case, compiled.fetch(state))
                if must_stop:
                    raise Interrupted(
                        f"Stopped after task {task} of case {case.name!r}. The same "
                        "command goes on from there."
                    )

    def _write(
        self,
        case: Case,
        task: int,
        metrics: dict[str, np.ndarray],
        log: ReplacementLog | None,
        events: tensorboard.EventWriter | None,
    ) -> None:
        """Writes what is kept of a task beside the progress."""
        if events is not None:
            events.add(task, metrics)
        if log is not None and distributed.is_first():
            hidden = case.problem.learner.layers[:-1]
            lost = self._log_file.append(
                case.name, task, case.grid.coordinates, hidden, log
            )
            if lost:
                tqdm.write(
                    f"{case.name}, task {task}: {lost} replacements did not fit into "
                    "the log; raise config.replacement_log."
                )

    @contextlib.contextmanager
    def _event_writer(
        self, case: Case, first_task: int
    ) -> Iterator[tensorboard.EventWriter | None]:
        if not (self._config.tensorboard and distributed.is_first()):
            yield None
            return
        writer = tensorboard.EventWriter(self._folder, case, first_task)
        with contextlib.closing(writer):
            yield writer

    def _save(self, case: Case, state: dict[str, np.ndarray]) -> None:
        progress = self._progress[case.name]
        tree = {"state": state, "progress": progress.to_tree()}
        self._checkpointers[case.name].save(progress.num_tasks, tree)

    def _restore(self) -> None:
        for case in self._cases:
            saved = self._checkpointers[case.name].restore()
            if saved is None:
                continue
            progress = CaseProgress.from_tree(saved["progress"])
            case.check_lanes(progress.num_lanes)
            self._progress[case.name] = progress
            if progress.num_tasks < case.config.num_tasks:
                self._saved_states[case.name] = saved["state"]
        if distributed.is_first():
            self._log_file.forget_after(
                {case.name: self._tasks_done(case) for case in self._cases}
            )

    def _tasks_done(self, case: Case) -> int:
        return self._progress[case.name].num_tasks

    def _save_results(self) -> xr.Dataset:
        datasets = [
            run_results.case_dataset(
                case.name,
                case.grid.coordinates,
                case.problem.learner.layers,
                self._progress[case.name].arrays(),
                case.problem.learner.layer_sizes,
                case.problem.examples_per_task,
                case.problem.steps_per_task,
                self._progress[case.name].steps_per_second,
                self._progress[case.name].block,
            )
            for case in self._cases
        ]
        versions = {"jax": jax.__version__, "python": platform.python_version()}
        dataset = run_results.join_cases(
            datasets,
            {
                "config": configuration.to_json(self._config),
                "versions": json.dumps({"cbp_jax": cbp_jax.__version__} | versions),
                "numerics": json.dumps(numerics.environment()),
                "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            },
        )
        if distributed.is_first():
            run_results.save(dataset, self._folder)
        return dataset


def _show(bar: tqdm, metrics: dict[str, np.ndarray]) -> None:
    """Shows the mean score of a task over lanes beside the progress bar."""
    score = metrics.get("accuracy", metrics.get("error"))
    if np.isfinite(score).any():
        bar.set_postfix(score=f"{np.nanmean(score):.4f}", refresh=False)


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

    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

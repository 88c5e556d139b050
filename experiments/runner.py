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
from experiments import checkpoints, configuration, processes, results, tensorboard
from experiments.blocks import choose_block
from experiments.cases import Case, Program, prepare_cases
from experiments.history import CaseHistory
from experiments.problem import Problem
from experiments.replacement_log import LogFile, ReplacementLog
from experiments.run_folder import open_folder


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved what it had."""


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
      folder: the run folder; holds `results.nc`, `config.json`, `checkpoints/`, and
        what `config.replacement_log` and `config.tensorboard` switch on. With several
        processes it must be the same folder for all.
      make_problem: builds a problem from the config of a case.
      overwrite: delete what the folder holds and start anew.

    Returns:
      The results, see `results.case_dataset`.

    Raises:
      ValueError: a config that cannot be run.
      RunFolderError: the folder holds a run of another config or version.
      CheckpointError: a checkpoint cannot be written; the last one is whole.
      Interrupted: SIGINT or SIGTERM came; the same call goes on from there.
    """
    cases = prepare_cases(config, make_problem)
    if config.tensorboard:
        tensorboard.check_installed()
    if processes.is_first():
        open_folder(folder, configuration.to_json(config), overwrite)
    processes.wait_for_all("run folder")
    checkpointer = checkpoints.Checkpointer(folder)
    try:
        return _Run(config, folder, cases, make_problem, checkpointer).run()
    finally:
        checkpointer.close()


class _Run:
    """A run on the host: what is done, and where it is written."""

    def __init__(
        self,
        config: Any,
        folder: pathlib.Path,
        cases: list[Case],
        make_problem: Callable[[Any], Problem],
        checkpointer: checkpoints.Checkpointer,
    ):
        self._config = config
        self._folder = folder
        self._cases = cases
        self._make_problem = make_problem
        self._checkpointer = checkpointer
        self._log_file = LogFile(folder)
        self._histories = {case.name: CaseHistory() for case in cases}
        self._saved_state: dict[str, np.ndarray] | None = None
        self._restore()

    def run(self) -> xr.Dataset:
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
                disable=not processes.is_first(),
            ) as bar,
        ):
            for case in self._cases:
                if self._tasks_done(case) < case.config.num_tasks:
                    self._run_case(case, bar, stop)
        return self._save_results()

    def _run_case(self, case: Case, bar: tqdm, stop: list[int]) -> None:
        bar.set_description(case.name)
        history = self._histories[case.name]
        first_task = self._tasks_done(case)
        history.block = history.block or choose_block(case, self._make_problem)
        program = Program(case, history.block)
        state = program.start(self._saved_state)
        self._saved_state = None
        with self._event_writer(case, first_task) as events:
            for task in range(first_task, case.config.num_tasks):
                start = time.perf_counter()
                state, metrics, log = program.run_task(state, task)
                if task > first_task:
                    history.timed_seconds += time.perf_counter() - start
                    history.timed_steps += case.steps_per_task
                history.add(metrics)
                self._write(case, task, metrics, log, events)
                _show(bar, metrics)
                bar.update(case.steps_per_task)
                must_stop = processes.any_process(bool(stop))
                is_due = (task + 1) % self._config.checkpoint_every == 0
                if must_stop or is_due or task + 1 == case.config.num_tasks:
                    self._save(program.fetch(state))
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
        """Writes what is kept of a task beside the history."""
        if events is not None:
            events.add(task, metrics)
        if log is not None and processes.is_first():
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
        if not (self._config.tensorboard and processes.is_first()):
            yield None
            return
        writer = tensorboard.EventWriter(self._folder, case, first_task)
        with contextlib.closing(writer):
            yield writer

    def _save(self, state: dict[str, np.ndarray]) -> None:
        histories = {
            name: history.to_tree()
            for name, history in self._histories.items()
            if history.num_tasks
        }
        tree = {
            "state": state,
            "history": histories,
            "log_size": np.array(self._log_file.size()),
        }
        step = sum(self._tasks_done(case) for case in self._cases)
        self._checkpointer.save(step, tree)

    def _restore(self) -> None:
        saved = self._checkpointer.restore()
        if processes.is_first():
            self._log_file.truncate(int(saved["log_size"]) if saved else 0)
        if saved is None:
            return
        for name, tree in saved["history"].items():
            self._histories[name] = CaseHistory.from_tree(tree)
        last = [case for case in self._cases if self._tasks_done(case)][-1]
        if self._tasks_done(last) < last.config.num_tasks:
            self._saved_state = saved["state"]

    def _tasks_done(self, case: Case) -> int:
        return self._histories[case.name].num_tasks

    def _save_results(self) -> xr.Dataset:
        datasets = [
            results.case_dataset(
                case.name,
                case.grid.coordinates,
                case.problem.learner.layers,
                self._histories[case.name].arrays(),
                case.problem.learner.layer_sizes,
                case.problem.examples_per_task,
                case.problem.steps_per_task,
                self._histories[case.name].steps_per_second,
                self._histories[case.name].block,
            )
            for case in self._cases
        ]
        versions = {"jax": jax.__version__, "python": platform.python_version()}
        dataset = results.join_cases(
            datasets,
            {
                "config": configuration.to_json(self._config),
                "versions": json.dumps({"cbp_jax": cbp_jax.__version__} | versions),
                "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            },
        )
        if processes.is_first():
            results.save(dataset, self._folder)
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

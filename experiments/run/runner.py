"""The loop over cases and tasks: train, measure, save, resume.

Shapes: L lanes, T tasks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
import platform
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import cbp_jax
from experiments.learning.problem import Problem
from experiments.learning.replacement_log import ReplacementLog
from experiments.run import distributed, provenance, storage
from experiments.run.blocks import choose_block
from experiments.run.cases import Case, CompiledCase, prepare_cases
from experiments.run.config import complete, searched_ranges
from experiments.run.folder import RunFolderError, open_folder
from experiments.run.hooks import Hook, Hooks, check_hooks, hooks_of
from experiments.run.logs import LogFile
from experiments.run.messages import say
from experiments.run.profiles import profiled_task
from experiments.run.signals import SaveClock, StopRequest, stop_signals
from experiments.run.storage import Checkpointer

# Shortest time between writes of unfinished results: seconds, and multiples of the time
# that a write takes.
_LEAST_SECONDS = 10
_TIMES_A_WRITE = 20


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved its progress."""


def run(
    config: Any,
    folder: pathlib.Path,
    make_problem: Callable[[Any], Problem],
    *,
    overwrite: bool = False,
    allow_changed_code: bool = False,
    hooks: Sequence[Hook] = (),
    profile: bool = False,
) -> Any:
    """Trains all cases, or continues a stopped or shorter run of the config.

    Args:
      config: the run's config.
      folder: the run folder. It contains `results.nc`, from the first checkpoints on,
        `config.json`, `code.json`, `checkpoints/`, and the output that
        `config.replacement_log`, `config.tensorboard` and `profile` enable. With
        several processes it must be the same folder for all.
      make_problem: builds a problem from the config of a case.
      overwrite: delete the run in the folder and start from scratch.
      allow_changed_code: continue a run that other code started; the results name
        both.
      hooks: called after each task, in addition to those that the config enables.
      profile: write a profile of the second task of each case; see `profiles`.

    Returns:
      The results, an `xarray.Dataset`; see `run_results.case_dataset`.

    Raises:
      ValueError: the config cannot be run.
      RunFolderError: the folder contains a run of another config, version or code, a
        run that is still going, or something else.
      CheckpointError: a checkpoint cannot be written, and the last one is intact; or
        all checkpoints of a case are damaged.
      HookError: a hook raised an exception; the results so far are saved.
      Interrupted: a signal asked the run to stop (SIGINT, SIGTERM, SIGHUP, SIGUSR1,
        SIGUSR2 or SIGXCPU); the same call continues from there. Only the main thread
        handles signals.
      KeyboardInterrupt: a second SIGINT came during a task, which is lost; the same
        call continues from the last checkpoint.
    """
    check_hooks(hooks)
    config = complete(config)
    cases = prepare_cases(config, make_problem)
    all_hooks = [*hooks, *hooks_of(config, folder)]
    code = provenance.current_code(make_problem)
    as_json = provenance.to_json(config)
    with (
        stop_signals() as stop,
        _opened(folder, as_json, overwrite, code, allow_changed_code),
    ):
        one_run = _Run(
            config, folder, cases, make_problem, stop, Hooks(all_hooks), profile
        )
        try:
            return one_run.run()
        finally:
            one_run.close()


@contextlib.contextmanager
def _opened(folder: pathlib.Path, *options: Any) -> Iterator[None]:
    """Opens the run folder in the first process; all fail if it cannot."""
    with contextlib.ExitStack() as stack:
        error = None
        if distributed.is_first():
            try:
                stack.enter_context(open_folder(folder, *options))
                stack.enter_context(storage.writable_checkpoints(folder))
            except (OSError, ValueError) as caught:
                error = caught
        if distributed.any_process(error is not None):
            raise error or RunFolderError(
                "The run cannot start; see the error of process 0."
            )
        yield


class _Run:
    """The host's side of a run: its progress and its files."""

    def __init__(
        self,
        config: Any,
        folder: pathlib.Path,
        cases: list[Case],
        make_problem: Callable[[Any], Problem],
        stop: StopRequest,
        hooks: Hooks,
        profile: bool,
    ):
        self._config = config
        self._folder = folder
        self._cases = cases
        self._make_problem = make_problem
        self._stop = stop
        self._hooks = hooks
        self._profile = profile
        self._log_file = None
        if any(case.config.replacement_log for case in cases):
            swept = (name for case in cases for name in case.grid.swept_names)
            self._log_file = LogFile(folder, list(dict.fromkeys(swept)))
        self._progress = {case.name: CaseProgress() for case in cases}
        self._checkpointers = {
            case.name: Checkpointer(folder, case.name) for case in cases
        }
        self._saved_states: dict[str, dict[str, np.ndarray]] = {}
        self._codes = provenance.as_attribute(provenance.read_codes(folder))
        self._results_due = time.monotonic() + _LEAST_SECONDS

    def close(self) -> None:
        self._hooks.close()
        for checkpointer in self._checkpointers.values():
            checkpointer.close()

    def run(self) -> Any:
        self._restore()
        done = [
            self._tasks_done(case) * case.updates_per_task_all_lanes
            for case in self._cases
        ]
        total = [
            case.config.num_tasks * case.updates_per_task_all_lanes
            for case in self._cases
        ]
        with tqdm(
            total=sum(total),
            initial=sum(done),
            unit="step",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not distributed.is_first(),
        ) as bar:
            for case in self._cases:
                if self._tasks_done(case) < case.config.num_tasks:
                    self._run_case(case, bar)
        return self._save_results()

    def _run_case(self, case: Case, bar: tqdm) -> None:
        bar.set_description(case.name)
        progress = self._progress[case.name]
        first_task = progress.num_tasks
        clock = SaveClock(case.name, first_task, self._config.checkpoint_seconds)
        self._stop.outlook = clock.outlook
        with self._stop.at_once():
            progress.block = progress.block or choose_block(case, self._make_problem)
            compiled = CompiledCase(case, progress.block)
            state = compiled.start(self._saved_states.pop(case.name, None))
        if distributed.any_process(bool(self._stop)):
            raise Interrupted(_goes_on(f"before task {first_task}", case))
        # The first task compiles, so the second is more representative.
        profiled = min(first_task + 1, case.config.num_tasks - 1)
        for task in range(first_task, case.config.num_tasks):
            is_profiled = self._profile and task == profiled
            start = time.perf_counter()
            with (
                profiled_task(self._folder, case.name, task, is_profiled),
                self._stop.at_once(),
                clock.task(),
            ):
                state, metrics, log = compiled.run_task(state, task)
            if task > first_task and not is_profiled:
                progress.timed_seconds += time.perf_counter() - start
                progress.timed_steps += case.updates_per_task_all_lanes
            progress.add(metrics)
            self._write_log(case, task, log)
            hook_error = self._hooks.call(case, task, metrics)
            _show(bar, metrics)
            bar.update(case.updates_per_task_all_lanes)
            must_stop = distributed.any_process(
                bool(self._stop) or hook_error is not None
            )
            is_last = task + 1 == case.config.num_tasks
            is_due = (task + 1) % self._config.checkpoint_every == 0
            if (
                must_stop
                or is_last
                or is_due
                or distributed.any_process(clock.is_due())
            ):
                with clock.save():
                    self._save(case, compiled.fetch(state))
                self._save_unfinished_results(at_once=must_stop or is_last)
            if hook_error is not None:
                self._save_results()  # Also after the last task of a run.
                raise hook_error
            if must_stop:
                raise Interrupted(_goes_on(f"after task {task}", case))

    def _write_log(self, case: Case, task: int, log: ReplacementLog | None) -> None:
        """Writes the replacements of a task."""
        if log is not None and distributed.is_first():
            hidden = case.problem.learner.layers[:-1]
            grid = case.grid
            lost = self._log_file.append(
                case.name, task, grid.coordinates, hidden, log, grid.trials
            )
            if lost:
                say(
                    f"{case.name}, task {task}: {lost} replacements did not fit in the "
                    "log; raise config.replacement_log.",
                    sys.stdout,
                )

    def _save(self, case: Case, state: dict[str, np.ndarray]) -> None:
        progress = self._progress[case.name]
        tree = {"state": state, "progress": progress.to_tree()}
        checkpointer = self._checkpointers[case.name]
        checkpointer.save(progress.num_tasks, tree, progress.unsaved())
        progress.mark_saved()

    def _restore(self) -> None:
        for case in self._cases:
            saved = self._checkpointers[case.name].restore()
            if saved is None:
                continue
            progress = CaseProgress.from_tree(
                saved["progress"], saved.get("records", ())
            )
            case.check_lanes(progress.num_lanes)
            self._progress[case.name] = progress
            if progress.num_tasks < case.config.num_tasks:
                self._saved_states[case.name] = saved["state"]
        if self._log_file is not None and distributed.is_first():
            self._log_file.forget_after(
                {case.name: self._tasks_done(case) for case in self._cases}
            )

    def _tasks_done(self, case: Case) -> int:
        return self._progress[case.name].num_tasks

    def _save_unfinished_results(self, at_once: bool) -> None:
        """Writes the results so far, rarely enough to take a small share of the time.

        The run continues if they cannot be written, because checkpoints contain them.

        Args:
          at_once: write them now, unless the run is over.
        """
        start = time.monotonic()
        is_over = all(
            self._tasks_done(case) == case.config.num_tasks for case in self._cases
        )
        is_due = at_once or start >= self._results_due
        if is_over or not is_due or not distributed.is_first():
            return
        try:
            self._save_results()
        except OSError as error:
            say(
                f"Cannot write the results so far to {self._folder}: {error}. The run "
                "continues and will try again later."
            )
        end = time.monotonic()
        self._results_due = end + max(_LEAST_SECONDS, _TIMES_A_WRITE * (end - start))

    def _save_results(self) -> Any:
        """Labels and writes the results so far; returns an `xarray.Dataset`."""
        # Imported late, because it imports xarray and pandas, which are slow.
        from experiments.reporting import run_results

        datasets = [
            run_results.case_dataset(
                case.name,
                case.grid.coordinates,
                case.problem.learner.layers,
                self._progress[case.name].arrays(),
                case.problem.learner.layer_sizes,
                case.problem.examples_per_task,
                case.problem.updates_per_task,
                self._progress[case.name].steps_per_second,
                self._progress[case.name].block,
                case.grid.trials,
            )
            for case in self._cases
        ]
        versions = {"jax": jax.__version__, "python": platform.python_version()}
        tasks = {
            case.name: (self._tasks_done(case), case.config.num_tasks)
            for case in self._cases
        }
        dataset = run_results.join_cases(
            datasets,
            run_results.task_attributes(tasks)
            | {
                "config": provenance.to_json(self._config),
                "code": self._codes,
                "versions": json.dumps({"cbp_jax": cbp_jax.__version__} | versions),
                "numerics": json.dumps(provenance.environment()),
                "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            }
            | run_results.search_attribute(
                {case.name: searched_ranges(case.config) for case in self._cases}
            ),
        )
        if distributed.is_first():
            run_results.save(dataset, self._folder)
        return dataset


def _goes_on(where: str, case: Case) -> str:
    return (
        f"Stopped {where} of case {case.name!r}. The same command continues from there."
    )


def _show(bar: tqdm, metrics: dict[str, np.ndarray]) -> None:
    """Shows the mean score of a task over lanes next to the progress bar."""
    score = metrics.get("accuracy", metrics.get("error"))
    if np.isfinite(score).any():
        bar.set_postfix(score=f"{np.nanmean(score):.4f}", refresh=False)


class CaseProgress:
    """Metrics of the tasks that a case has done, and the time they took."""

    def __init__(self) -> None:
        # Consecutive blocks of tasks, arrays [L, T, ...].
        self._saved: list[Mapping[str, np.ndarray]] = []
        self._unsaved: list[Mapping[str, np.ndarray]] = []
        self.num_tasks = 0  # Tasks done.
        self.timed_steps = 0.0
        self.timed_seconds = 0.0  # Without tasks that compiled.
        self.block = 0  # Lanes per block; 0 before it is chosen.

    @property
    def num_lanes(self) -> int:
        """L; 0 before the first task."""
        arrays = self.arrays()
        return len(next(iter(arrays.values()))) if arrays else 0

    @property
    def steps_per_second(self) -> float:
        """Updates per second over all lanes; NaN before any task was timed."""
        return self.timed_steps / self.timed_seconds if self.timed_seconds else np.nan

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics [L, ...] of a task.

        Raises:
          ValueError: the metrics or their shapes differ from those of earlier tasks,
            because the code has changed.
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
        """Marks the metrics that `unsaved` returned as saved."""
        self._saved += [_join(self._unsaved)] if self._unsaved else []
        self._unsaved = []

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the metrics of all tasks as arrays [L, T, ...]."""
        self._saved = [_join(self._saved)] if self._saved else []
        return _join([*self._saved, *self._unsaved])

    def to_tree(self) -> dict[str, Any]:
        """Returns everything but the metrics as a dict of arrays."""
        other = [self.timed_steps, self.timed_seconds, self.block]
        return {"other": np.array(other, np.float64)}

    @classmethod
    def from_tree(
        cls, tree: Mapping[str, Any], blocks: Iterable[Mapping[str, np.ndarray]]
    ) -> "CaseProgress":
        """Undoes `to_tree`.

        Args:
          tree: from `to_tree`. Checkpoints written until November 2026 also contain
            the metrics; these are saved again.
          blocks: the saved results of `unsaved`, in order.
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
    """Concatenates blocks of tasks."""
    if not blocks:
        return {}
    return {
        name: np.concatenate([block[name] for block in blocks], axis=1)
        for name in blocks[0]
    }


def _check_alike(
    before: Mapping[str, np.ndarray], block: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError unless two blocks have the same metrics and shapes."""
    one, two = (
        {name: (values.shape[0], *values.shape[2:]) for name, values in each.items()}
        for each in (before, block)
    )
    differing = sorted(name for name, _ in one.items() ^ two.items())
    if differing:
        raise ValueError(
            "The metrics of this task differ from those of the tasks so far: "
            f"{', '.join(dict.fromkeys(differing))}. The code has changed. Continue "
            "with the earlier code, pass --overwrite to start from scratch, or pass "
            "another --workdir."
        )

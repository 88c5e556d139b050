"""Runs a config from Python, as the programs do from the command line."""

from collections.abc import Callable, Sequence
import contextlib
import importlib
import os
import pathlib
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from experiments.learning.checks import ConfigError
from experiments.learning.problem import Problem
from experiments.run import machine, runner, storage
from experiments.run.hooks import Hook

if TYPE_CHECKING:
    import xarray as xr

MakeProblem = Callable[[Any], Problem]


def run_config(
    config: ConfigDict,
    problem: str | MakeProblem,
    workdir: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    allow_changed_code: bool = False,
    hooks: Sequence[Hook] = (),
    profile: bool = False,
) -> "xr.Dataset":
    """Runs a config and returns its results.

    It does what the command `python -m experiments.PROBLEM` does, in the same folder
    and with the same files, except for the table and the figures, which
    `experiments.reporting.tables` and `python -m experiments.figures RUN` make:

        from configs import pmnist
        from experiments.run import run_config

        config = pmnist.get_config("smoke")
        config.num_seeds = 5
        dataset = run_config(config, "permuted_mnist")
        print(dataset.accuracy.mean("seed"))

    Called again, it continues a stopped run; with a larger `config.num_tasks`, it makes
    a finished run longer.

    Args:
      config: a config as the files in `configs/` make it.
      problem: the name of a program in `experiments/`, or a function that builds a
        problem from the config of a case.
      workdir: the run folder; None for the program's, `runs/PROBLEM/PRESET`.
      overwrite: delete the run in the folder and start from scratch.
      allow_changed_code: continue a run that other code started.
      hooks: called after each task with an `experiments.run.hooks.TaskResult`.
      profile: write a profile of the second task of each case to `profile/CASE` in the
        run folder.

    Returns:
      The results; see `experiments.reporting.run_results.case_dataset`.

    Raises:
      ConfigError: there is no such problem. For other errors, see `runner.run`.
    """
    make_problem = find_problem(problem) if isinstance(problem, str) else problem
    name = problem if isinstance(problem, str) else make_problem.__module__
    folder = pathlib.Path(
        workdir or pathlib.Path("runs") / name.rpartition(".")[2] / config.preset
    )
    with contextlib.suppress(RuntimeError):  # JAX has already chosen its devices.
        machine.use_all_cores()
    machine.keep_compiled_programs(folder)
    storage.ignore_late_callbacks()
    return runner.run(
        config,
        folder,
        make_problem,
        overwrite=overwrite,
        allow_changed_code=allow_changed_code,
        hooks=hooks,
        profile=profile,
    )


def find_problem(name: str) -> MakeProblem:
    """Returns the `make_problem` of a program.

    Args:
      name: name of its file in `experiments/`, without `.py`.

    Raises:
      ConfigError: there is no such program, or it has no `make_problem`.
    """
    try:
        return importlib.import_module(f"experiments.{name}").make_problem
    except (ModuleNotFoundError, AttributeError) as error:
        missing = f"experiments.{name}"
        if isinstance(error, ModuleNotFoundError) and error.name != missing:
            raise
        raise ConfigError(
            f"There is no problem {name!r}. Name a file in experiments/ that has a "
            "make_problem, such as permuted_mnist."
        ) from error

"""The command line that all problems share."""

from collections.abc import Callable
import errno
import os
import pathlib
import sys
from typing import Any

from absl import app, flags, logging
import jax
import threadpoolctl

from experiments.engine import checkpoints, distributed, run_folder, runner
from experiments.engine.compilation import keep_compiled_programs
from experiments.engine.configuration import check_has_effect
from experiments.engine.overrides import define_config_flag, overridden
from experiments.learning.problem import Problem
from experiments.reporting import plots, run_results, survival, tables


def run(name: str, make_problem: Callable[[Any], Problem]) -> None:
    """Parses the flags and runs a problem; does not return.

    Flags: `--config=FILE[:PRESET]`, `--config.FIELD=VALUE` and others that
    `overrides.define_config_flag` describes, `--workdir=DIR`, `--overwrite`; on several
    hosts `--distributed`, where JAX cannot find the processes by itself with
    `--address`, `--num_processes` and `--process_index`.

    Args:
      name: of the problem; runs go to `runs/NAME/PRESET` by default.
      make_problem: builds the problem from the config of a case.
    """
    config = define_config_flag()
    workdir = flags.DEFINE_string(
        "workdir", None, f"Run folder; default runs/{name}/PRESET."
    )
    overwrite = flags.DEFINE_bool("overwrite", False, "Delete an earlier run there.")
    join = flags.DEFINE_bool(
        "distributed", False, "Join other processes, found by JAX or by these flags:"
    )
    address = flags.DEFINE_string("address", None, "host:port of process 0.")
    count = flags.DEFINE_integer("num_processes", None, "Number of processes.")
    index = flags.DEFINE_integer("process_index", None, "Index of this process.")
    flags.mark_flag_as_required("config")

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"Unknown arguments: {arguments[1:]}.")
        folder = pathlib.Path(
            workdir.value or pathlib.Path("runs") / name / config.value.preset
        )
        use_all_cores()
        keep_compiled_programs(folder)
        if join.value:
            distributed.start(address.value, count.value, index.value)
        sys.exit(train(config.value, folder, make_problem, overwrite.value))

    app.run(main, flags_parser=parse_flags)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags, and says in one line what is wrong with a config or an override."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        path = value.partition(":")[0]
        if name == "--config" and not os.path.isfile(path):
            print(f"The config file {path!r} does not exist.", file=sys.stderr)
            sys.exit(2)
    try:
        rest = flags.FLAGS(arguments)
        for path in overridden(arguments):
            match path:
                case (str(field),):
                    check_has_effect(flags.FLAGS.config, field)
                case ("cases", name, str(field)):
                    check_has_effect(flags.FLAGS.config, field, name)
        return rest
    except flags.Error as error:
        # A config file that raises is reported with its whole traceback.
        message = str(error).strip().splitlines()[-1]
    except (AttributeError, KeyError) as error:
        reason = error.args[0]
        while isinstance(reason, Exception):
            reason = reason.args[0]
        message = f"The config has no such field: {reason}"
    except (TypeError, ValueError, OSError) as error:
        message = str(error)
    print(f"{message}\nPass --help for the flags.", file=sys.stderr)
    sys.exit(2)


def train(
    config: Any,
    folder: pathlib.Path,
    make_problem: Callable[[Any], Problem],
    overwrite: bool = False,
) -> int:
    """Runs a config, prints its table and draws its figures.

    Args:
      config: the run's config.
      folder: the run folder.
      make_problem: builds a problem from the config of a case.
      overwrite: see `runner.run`.

    Returns:
      The exit status: 0, or 1 after a message that says what is wrong.
    """
    # Orbax logs the whole traceback of a failed write, told in a sentence below.
    logging.set_verbosity(logging.FATAL)
    checkpoints.ignore_late_callbacks()
    try:
        dataset = runner.run(config, folder, make_problem, overwrite=overwrite)
    except (ValueError, OSError, ImportError, runner.Interrupted) as error:
        return _failed(error, folder)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(error, folder)
    if not distributed.is_first():
        return 0
    print(tables.summary_table(dataset))
    print(tables.INTERVALS)
    for line in tables.diverged_lanes(dataset):
        print(line)
    written = [folder / run_results.RESULTS_FILE, folder / run_folder.CONFIG_FILE]
    if (folder / survival.LOG_FILE).exists():
        written.append(folder / survival.LOG_FILE)
    try:
        written += plots.draw_run(dataset, folder)
    except OSError as error:
        return _failed(error, folder)
    print("Written:", *written, sep="\n  ")
    return 0


def _failed(error: Exception, folder: pathlib.Path) -> int:
    """Prints what has failed and what helps; returns the exit status."""
    cure = ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        cure = (
            f"\nMake room for {folder}: then the same command goes on from the last "
            "checkpoint."
        )
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        message = message.splitlines()[0]
        cure = (
            "\nLower what is large in the config, such as examples_per_task, "
            "hidden_units or lanes_per_block."
        )
    print(f"{message}{cure}", file=sys.stderr)
    return 1


def use_all_cores() -> None:
    """Makes each core an XLA device, since one device uses little more than one.

    JAX_NUM_CPU_DEVICES in the environment sets another number. LAPACK, which finds
    ranks, gets one thread: more would spin for a while on cores that devices need.
    """
    threadpoolctl.threadpool_limits(1, user_api="blas")
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    jax.config.update("jax_num_cpu_devices", cores)

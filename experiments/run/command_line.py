"""The command line that all problems share."""

from collections.abc import Callable, Sequence
import contextlib
import errno
import os
import pathlib
import signal
import sys
from typing import Any

from absl import app, flags, logging
import jax

from experiments.learning import variants  # noqa: F401  Sets the styles in figures.
from experiments.learning.problem import Problem
from experiments.reporting import files
from experiments.run import distributed, runner, storage
from experiments.run.config import (
    check_has_effect,
    define_config_flag,
    keep_cases,
    overridden,
)
from experiments.run.folder import CONFIG_FILE
from experiments.run.help import HELP_FLAGS, help_text
from experiments.run.hooks import HookError, load_hook
from experiments.run.machine import keep_compiled_programs, use_all_cores
from experiments.run.messages import say
from experiments.run.provenance import CODE_FILE


def run(name: str, make_problem: Callable[[Any], Problem]) -> None:
    """Parses the flags and runs a problem; does not return.

    Flags: `--config=FILE[:PRESET]`, `--config.FIELD=VALUE` and the others that
    `config.define_config_flag` describes, `--cases=NAME,NAME`, `--workdir=DIR`,
    `--overwrite`, `--allow_changed_code`, `--hook=MODULE:FUNCTION`, `--profile`. On
    several hosts, also `--distributed`, with `--address`, `--num_processes` and
    `--process_index` if JAX cannot find the processes by itself.

    Args:
      name: name of the problem; runs go to `runs/NAME/PRESET` by default.
      make_problem: builds the problem from the config of a case.
    """
    config = define_config_flag()
    define_cases_flag()
    workdir = flags.DEFINE_string(
        "workdir", None, f"Run folder; runs/{name}/PRESET by default."
    )
    overwrite = flags.DEFINE_bool("overwrite", False, "Delete the run in the folder.")
    allow_changed_code = flags.DEFINE_bool(
        "allow_changed_code", False, "Continue a run that other code started."
    )
    hooks = flags.DEFINE_multi_string(
        "hook",
        [],
        "MODULE:FUNCTION to call after each task with an "
        "experiments.run.hooks.TaskResult",
    )
    profile = flags.DEFINE_bool(
        "profile", False, "Write a profile of the second task to RUN/profile."
    )
    join = flags.DEFINE_bool(
        "distributed", False, "Join the other processes, found by JAX or given by:"
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
        try:
            sys.exit(
                train(
                    config.value,
                    folder,
                    make_problem,
                    overwrite.value,
                    allow_changed_code.value,
                    hooks.value,
                    profile.value,
                )
            )
        except KeyboardInterrupt:
            end_at_once()

    def parse(arguments: list[str]) -> list[str]:
        if any(argument in HELP_FLAGS for argument in arguments):
            _print_help(arguments)
            sys.exit(0)
        return parse_flags(arguments)

    app.run(main, flags_parser=parse)


def _print_help(arguments: list[str]) -> None:
    """Prints the program's help, with the fields of the config on the command line."""
    rest = [argument for argument in arguments if argument not in HELP_FLAGS]
    config = None
    if any(argument.startswith("--config=") for argument in rest):
        parse_flags(rest)
        config = flags.FLAGS.config
    about = sys.modules["__main__"].__doc__ or ""
    print(help_text(about, __name__, config))


def define_cases_flag() -> None:
    """Defines `--cases=NAME,NAME`, which `parse_flags` applies to the config."""
    flags.DEFINE_list("cases", [], "Cases of the config to run; all by default.")


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags, and reports a wrong config or override in one line."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        path = value.partition(":")[0]
        if name == "--config" and not os.path.isfile(path):
            print(f"The config file {path!r} does not exist.", file=sys.stderr)
            sys.exit(2)
    try:
        rest = flags.FLAGS(arguments)
        if "cases" in flags.FLAGS and flags.FLAGS.cases:
            if flags.FLAGS.config is None:
                raise flags.Error(
                    "--cases chooses from the cases of a config, but there is none: "
                    "pass --config=FILE[:PRESET]."
                )
            keep_cases(flags.FLAGS.config, flags.FLAGS.cases)
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
    allow_changed_code: bool = False,
    hooks: Sequence[str] = (),
    profile: bool = False,
) -> int:
    """Runs a config, prints its table and draws its figures.

    Args:
      config: the run's config.
      folder: the run folder.
      make_problem: builds a problem from the config of a case.
      overwrite: see `runner.run`.
      allow_changed_code: see `runner.run`.
      hooks: see `hooks.load_hook`.
      profile: see `runner.run`.

    Returns:
      The exit status: 0, or 1 after an error message.
    """
    # Orbax logs the whole traceback of a failed write; the message below is enough.
    quiet_logs()
    storage.ignore_late_callbacks()
    try:
        dataset = runner.run(
            config,
            folder,
            make_problem,
            overwrite=overwrite,
            allow_changed_code=allow_changed_code,
            hooks=[load_hook(path) for path in hooks],
            profile=profile,
        )
    except (ValueError, OSError, ImportError, runner.Interrupted, HookError) as error:
        return _failed(error, folder)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(error, folder)
    if not distributed.is_first():
        return 0
    from experiments.reporting import plots, run_results, survival, tables

    say(tables.summary_table(dataset), sys.stdout)
    say(tables.INTERVALS, sys.stdout)
    for line in (*tables.diverged_lanes(dataset), *run_results.remarks(dataset)):
        say(line, sys.stdout)
    written = [folder / files.RESULTS_FILE, folder / CONFIG_FILE]
    written.append(folder / CODE_FILE)
    if (folder / files.REPLACEMENTS_FILE).exists():
        written.append(folder / files.REPLACEMENTS_FILE)
    try:
        written += plots.draw_run(dataset, folder)
        if text := survival.replaced_table(folder, dataset):
            say(text, sys.stdout)
    except OSError as error:
        return _failed(error, folder)
    say("\n  ".join(map(str, ("Written:", *written))), sys.stdout)
    return 0


def _failed(error: Exception, folder: pathlib.Path) -> int:
    """Prints an error and its remedy; returns the exit status."""
    remedy = ""
    cause = error.__cause__ if isinstance(error, HookError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = (
            f"\nFree disk space for {folder}; then the same command continues from the "
            "last checkpoint."
        )
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        message = message.splitlines()[0]
        remedy = (
            "\nLower the large numbers in the config, such as examples_per_task, "
            "hidden_units or lanes_per_block."
        )
    say(f"{message}{remedy}")
    return 1


def end_at_once() -> None:
    """Ends the process as an unhandled Ctrl-C does.

    Python would wait for the running task, because XLA cannot stop it.
    """
    say("Stopped at once. The same command continues from the last checkpoint.")
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def quiet_logs() -> None:
    """Hides the logs of absl, unless --verbosity is set."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)

r"""Times training, beside what the machine can do; experiments/README.md reads it.

    python -m experiments.benchmark [--preset=cpu|accelerator|smoke] [--minutes=5] \
        [--only='3 x 100'] [--against=torch] [--csv=FILE]
    python -m experiments.benchmark PROBLEM --config=configs/pmnist.py:methods \
        [--config.FIELD=VALUE] [--reference=backprop] [--steps=1000] [--rounds=7] \
        [--parts=data] [--parts=measures]

A preset of configs/benchmark.py times its groups, each a network and a number of lanes.
The second form times the methods of any config beside each other, with the lanes that a
run of it would have; PROBLEM is the name of a program, such as permuted_mnist.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib
import math
import os
import pathlib
import sys
import tempfile
import threading
from typing import Any

from absl import app, flags
import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.learning.checks import ConfigError
from experiments.learning.problem import Problem
from experiments.run import command_line
from experiments.run.config import define_config_flag
from experiments.timing import checks, sessions, torch_loop
from experiments.timing.groups import DATA, MEASURES, Plan, time_group
from experiments.timing.machine import Machine
from experiments.timing.made_up_images import write_images
from experiments.timing.rounds import Deadline
from experiments.timing.table import CsvFile, Row, rows, table

PROBLEMS = ("continual_imagenet", "permuted_mnist", "slowly_changing_regression")

_ROOT = pathlib.Path(__file__).parents[1]
_TRACE = _ROOT / "tests" / "traces" / "mlp_sgd_relu_online.npz"
# Of the time that there is; the rest is for what is under way when this is over.
_PLANNED = 0.9


def _main(arguments: Sequence[str]) -> None:
    problem = arguments[1] if len(arguments) == 2 else None
    if len(arguments) > 2 or (problem is not None and problem not in PROBLEMS):
        raise app.UsageError(f"Name one problem of {list(PROBLEMS)}, or none.")
    if (problem is None) != (_CONFIG.value is None):
        raise app.UsageError(
            f"Name both one problem of {list(PROBLEMS)} and its --config, or neither."
        )
    command_line.use_all_cores()
    try:
        if _AGAINST.value:
            torch_loop.check_installed()
        sys.exit(_run_preset() if problem is None else _run_config(problem))
    except (ImportError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _run_preset() -> int:
    """Runs the groups of a preset; returns the exit status."""
    preset = _preset(_PRESET.value)
    minutes = _MINUTES.value or preset.minutes
    deadline = Deadline(60 * _PLANNED * minutes)
    groups = sessions.choose(preset.groups, _ONLY.value)
    if preset.preset == "accelerator" and jax.default_backend() == "cpu":
        print(
            "JAX sees no accelerator here, only a CPU, which will not get far. On an "
            "NVIDIA GPU: pip install '.[cuda]'.",
            file=sys.stderr,
        )
    path = pathlib.Path(_CSV.value or f"runs/benchmark/{preset.preset}.csv")
    csv_file = CsvFile(path)
    found: list[Row] = []
    done: list[checks.Check] = []
    temporary = tempfile.TemporaryDirectory()

    def stop() -> None:
        print(f"{minutes:g} minutes are over; stopped in the middle of a group.")
        _report(found, done, preset, csv_file)
        sys.stdout.flush()
        temporary.cleanup()
        os._exit(_status(done))

    # What is being compiled cannot be interrupted in any other way.
    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    timer.start()
    with temporary as folder:
        if preset.check and _CHECK.value:
            for check in _checks(preset.check, pathlib.Path(folder)):
                done.append(check)
                tqdm.write(check.line)
        if any(group.config.get("dataset") == "mnist" for group in groups):
            write_images(pathlib.Path(folder))
        for group in groups:
            if group.config.get("dataset") == "mnist":
                group.config.data_dir = folder
        timed = sessions.time_groups(
            groups,
            _make_problem_of,
            _plan(preset, _ROUNDS.value or preset.rounds),
            Machine(preset.stream_megabytes, preset.matrix_size),
            deadline,
            csv_file,
        )
        for group, new in zip(groups, timed, strict=True):
            found += new
            tqdm.write(f"{sessions.title(group)}: {sessions.line(new)}")
    timer.cancel()
    _report(found, done, preset, csv_file)
    return _status(done)


def _checks(config: str, folder: pathlib.Path) -> Iterator[checks.Check]:
    """Makes the checks, the quick one first."""
    yield checks.replay_trace(_TRACE)
    problem = "permuted_mnist"
    yield from checks.compare_with_cpu(
        _preset(config),
        _make_problem_of(problem),
        ("-m", f"experiments.{problem}", f"--config=configs/benchmark.py:{config}"),
        _ROOT,
        folder,
    )


def _report(
    found: Sequence[Row],
    done: Sequence[checks.Check],
    preset: ConfigDict,
    csv_file: CsvFile,
) -> None:
    """Prints all that is known."""
    for check in done:
        print(check.line)
    if found:
        print(table(found, _REFERENCE.value))
        for line in sessions.projection(found, preset.paper):
            print(line)
    print(f"{_where()}; medians (middle half) over rounds that take turns.")
    print(f"Written: {csv_file.path}")


def _status(done: Sequence[checks.Check]) -> int:
    return int(any(check.status == "FAILED" for check in done))


def _run_config(problem: str) -> int:
    """Times the methods of a config; returns the exit status."""
    config = _CONFIG.value
    if _REFERENCE.value not in config.cases:
        raise ConfigError(
            f"--reference must be one of the config's cases {sorted(config.cases)}, "
            f"got {_REFERENCE.value!r}."
        )
    preset = _preset("cpu" if jax.default_backend() == "cpu" else "accelerator")
    rounds, steps = _ROUNDS.value or preset.rounds, _STEPS.value or preset.steps
    plan = _plan(preset, rounds)._replace(steps=steps, parts=_PARTS.value)
    deadline = Deadline(60 * _MINUTES.value if _MINUTES.value else math.inf)
    machine = Machine(preset.stream_megabytes, preset.matrix_size)
    group = time_group(
        config, _make_problem_of(problem), plan, machine, deadline, costs={}
    )
    network = f"{config.hidden_layers} x {config.hidden_units:,}"
    found = rows(
        group,
        problem=problem,
        network=network,
        reference=_REFERENCE.value,
        where=sessions.where(),
    )
    print(table(found, _REFERENCE.value))
    print(f"{_where()}; medians of {rounds} rounds of {steps} updates (middle half).")
    if _CSV.value:
        csv_file = CsvFile(pathlib.Path(_CSV.value))
        csv_file.append(found)
        print(f"Written: {csv_file.path}")
    return 0


def _preset(name: str) -> ConfigDict:
    """Reads a preset; configs are no part of the package, like what follows."""
    return importlib.import_module("configs.benchmark").get_config(name)


def _make_problem_of(name: str) -> Callable[[Any], Problem]:
    return importlib.import_module(f"experiments.{name}").make_problem


def _plan(preset: ConfigDict, rounds: int) -> Plan:
    return Plan(
        reference=_REFERENCE.value,
        steps=preset.steps,
        rounds=rounds,
        sample_seconds=preset.sample_seconds,
        against_torch=torch_loop.TorchLoop if _AGAINST.value else None,
    )


def _where() -> str:
    here = sessions.where()
    return f"{here['device']}, JAX {here['jax']}"


if __name__ == "__main__":
    _CONFIG = define_config_flag()
    _PRESET = flags.DEFINE_string("preset", "cpu", "Preset of configs/benchmark.py.")
    _MINUTES = flags.DEFINE_float("minutes", None, "When to stop.", 0.0)
    _ONLY = flags.DEFINE_string("only", "", "Part of the names of groups to time.")
    _AGAINST = flags.DEFINE_enum("against", None, ["torch"], "Time this beside.")
    _CSV = flags.DEFINE_string(
        "csv", None, "File of all numbers; with a preset runs/benchmark/PRESET.csv."
    )
    _REFERENCE = flags.DEFINE_string("reference", "backprop", "Case to compare with.")
    _STEPS = flags.DEFINE_integer("steps", None, "Updates of a timed task.", 1)
    _ROUNDS = flags.DEFINE_integer("rounds", None, "Times that each is timed.", 1)
    _CHECK = flags.DEFINE_bool("check", True, "Make the checks that a preset has.")
    _PARTS = flags.DEFINE_multi_enum(
        "parts", [], [DATA, MEASURES], "Part of a run whose share is wanted."
    )
    app.run(_main, flags_parser=command_line.parse_flags)

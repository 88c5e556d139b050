r"""Times training; docs/benchmark.md explains the numbers.

    python -m experiments.benchmark [--preset=cpu|accelerator|smoke] [--minutes=5] \
        [--only='3 x 100'] [--rounds=7] [--against=torch] [--csv=FILE]
    python -m experiments.benchmark PROBLEM --config=configs/pmnist.py:methods \
        [--cases=backprop,l2] [--config.FIELD=VALUE] [--reference=backprop] \
        [--steps=1000] [--rounds=7] [--parts=data] [--parts=measures]
    python -m experiments.benchmark [PROBLEM --config=...] --compile_for=h100

The first form times the groups of a preset in configs/benchmark.py, each a network with
a number of lanes. The second times the methods of any config against each other, with
the lanes of its runs; PROBLEM is the name of a program, such as permuted_mnist.

The third times nothing. It compiles the tasks of either for an accelerator that need
not be present, counts the work of an update, and projects how long a run would take.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
from functools import partial
import importlib
import math
import pathlib
import struct
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
import jax
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from experiments.learning.checks import ConfigError
from experiments.run import command_line
from experiments.run.cases import Case, prepare_cases
from experiments.run.config import complete, define_config_flag, make_cases, make_grid
from experiments.timing import ahead_of_time, compiled_table, programs, torch_loop
from experiments.timing.compiled_programs import update_work
from experiments.timing.devices import DEVICES, of_kind
from experiments.timing.projections import ASSUMED, Assumptions, project
from experiments.timing.rounds import take_turns
from experiments.timing.table import (
    COLUMNS,
    FLOOR,
    TORCH,
    Row,
    Timing,
    csv_cells,
    make_rows,
    make_table,
)

DATA, MEASURES = "data", "measures"
"""Parts of a run whose share of the time can be measured."""

_PRESET_MINUTES = 5.0
_SAMPLE_SECONDS = 0.1
_TASK, _BANDWIDTH = "task", "bandwidth"


def _main(arguments: Sequence[str]) -> None:
    problem = arguments[1] if len(arguments) == 2 else None
    if len(arguments) > 2 or (problem is None) != (_CONFIG.value is None):
        raise app.UsageError(
            "Pass both a problem, such as permuted_mnist, and its --config, or neither."
        )
    if _COMPILE_FOR.value:
        # Nothing runs, and the plugin of an absent GPU would print errors.
        jax.config.update("jax_platforms", "cpu")
    else:
        command_line.use_all_cores()
    try:
        if _AGAINST.value:
            torch_loop.check_installed()
        if problem is None:
            _run_preset(_PRESET.value)
        else:
            _run_config(problem, _CONFIG.value)
    except (ImportError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _run_preset(name: str) -> None:
    # Configs are not part of the package.
    presets = importlib.import_module("configs.benchmark")
    groups = choose(presets.get_config(name).groups, _ONLY.value)
    if _COMPILE_FOR.value:
        _compile_groups(groups)
        return
    if name == "accelerator" and jax.default_backend() == "cpu":
        print(
            "JAX found no accelerator, only a CPU, which is too slow for this preset. "
            "If there is an NVIDIA GPU, run pip install '.[cuda]'.",
            file=sys.stderr,
        )
    with _made_up_images(groups):
        _run_groups(name, groups, _MINUTES.value or _PRESET_MINUTES)


@contextlib.contextmanager
def _made_up_images(groups: Sequence[ConfigDict]) -> Iterator[None]:
    """Gives groups without a folder for MNIST random images instead."""
    wanting = [
        group.config
        for group in groups
        if group.config.get("dataset") == "mnist" and not group.config.data_dir
    ]
    with tempfile.TemporaryDirectory() as folder:
        for config in wanting:
            config.data_dir = folder
        if wanting:
            write_images(pathlib.Path(folder))
        yield


def _run_config(problem: str, config: ConfigDict) -> None:
    if _COMPILE_FOR.value:
        group = ConfigDict({"problem": problem, "config": config})
        group.network = _network_name(config)
        _compile_groups([group])
        return
    if _REFERENCE.value not in config.cases:
        raise ConfigError(
            f"--reference must be one of the config's cases {sorted(config.cases)}, "
            f"got {_REFERENCE.value!r}."
        )
    group = ConfigDict({"problem": problem, "config": config})
    group.network = _network_name(config)
    group.steps, group.parts = _STEPS.value, _PARTS.value
    _run_groups(problem, [group], _MINUTES.value or math.inf)


def _run_groups(name: str, groups: Sequence[ConfigDict], minutes: float) -> None:
    run_groups(
        groups,
        pathlib.Path(_CSV.value or f"runs/benchmark/{name}.csv"),
        minutes,
        reference=_REFERENCE.value,
        rounds=_ROUNDS.value,
        against_torch=_AGAINST.value is not None,
        assumptions=_assumptions(),
    )


def _network_name(config: ConfigDict) -> str:
    if isinstance(config.hidden_units, int):
        return f"{config.hidden_layers} x {config.hidden_units:,}"
    return " + ".join(f"{units:,}" for units in config.hidden_units)


def _assumptions() -> Assumptions:
    return Assumptions(
        1e-6 * _LAUNCH.value,
        1e-6 * _CONDITIONAL.value,
        _BANDWIDTH_SHARE.value,
        _BRANCH_SHARE.value,
    )


def _compile_groups(groups: Sequence[ConfigDict]) -> None:
    with _made_up_images(groups):
        compile_groups(
            groups,
            _COMPILE_FOR.value,
            _assumptions(),
            number=_DEVICES.value,
            path=pathlib.Path(_CSV.value) if _CSV.value else None,
            programs_folder=pathlib.Path(_HLO.value) if _HLO.value else None,
        )


def compile_groups(
    groups: Sequence[ConfigDict],
    name: str,
    assumptions: Assumptions,
    *,
    number: int = 1,
    path: pathlib.Path | None = None,
    programs_folder: pathlib.Path | None = None,
) -> None:
    """Compiles all cases of groups for an accelerator and prints their work there.

    Args:
      groups: see `time_group`.
      name: name of the accelerator, a key of `DEVICES`.
      assumptions: assumptions of the projected times.
      number: number of accelerators, over which the lanes are sharded.
      path: path of a CSV file of all numbers, or None.
      programs_folder: folder for the HLO text of the programs, or None.

    Raises:
      ImportError: a package is missing.
      ValueError: the config cannot be run, or there are too many accelerators.
    """
    device = DEVICES[name]
    devices = ahead_of_time.describe(device, number)
    rows = []
    for group in groups:
        for case in _cases_of(group):
            tqdm.write(f"{title(group)}: {case.name}", file=sys.stderr)
            task = ahead_of_time.compile_to_fit(case, device, devices)
            if programs_folder is not None:
                programs_folder.mkdir(parents=True, exist_ok=True)
                file_name = f"{name}, {title(group)}, {case.name}.txt"
                (programs_folder / file_name).write_text(task.text)
            row = compiled_table.make_row(
                case, group.network, task, device, assumptions
            )
            row |= {"problem": group.problem, "device": f"{number} x {name}"}
            rows.append(row)
            if path is not None:
                _write_rows(path, rows)
    print(compiled_table.make_table(rows))
    print(
        f"Compiled for {number} x {device.kind} with JAX {jax.__version__}; nothing "
        f"ran there. The times are projected, assuming {assumptions}; streams, "
        "measures and arithmetic are not counted."
    )


def _write_rows(path: pathlib.Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(map(csv_cells, rows))


def _cases_of(group: ConfigDict) -> list[Case]:
    """Builds the cases of a group, whose lanes need not fit on this machine."""
    make_problem = _make_problem_of(group.problem)
    return [
        Case(name, config, make_grid(config), make_problem(config))
        for name, config in make_cases(complete(group.config)).items()
    ]


def run_groups(
    groups: Sequence[ConfigDict],
    path: pathlib.Path,
    minutes: float,
    *,
    reference: str,
    **options: Any,
) -> None:
    """Times groups in order and prints a table, even after a Ctrl-C.

    Args:
      groups: see `time_group`.
      path: path of the CSV file, which is overwritten, and written after each group.
      minutes: no group starts after this time.
      reference: see `time_group`.
      **options: other arguments of `time_group`.
    """
    end = time.monotonic() + 60 * minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    with path.open("w", newline="") as file, contextlib.suppress(KeyboardInterrupt):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for group in groups:
            if time.monotonic() >= end:
                tqdm.write(f"{title(group)}: no time left")
                continue
            try:
                timings = time_group(group, reference=reference, end=end, **options)
            except ConfigError as error:
                if len(groups) == 1:
                    raise
                # The only error of a preset is too little memory for its lanes.
                tqdm.write(f"{title(group)}: {error}")
                continue
            rows = make_rows(timings, group.problem, group.network, reference)
            writer.writerows(map(csv_cells, rows))
            file.flush()
            found += rows
            tqdm.write(f"{title(group)}: done")
    if found:
        print(make_table(found, reference))
        print(
            f"{found[0]['device']}, JAX {found[0]['jax']}; medians (middle half) over "
            "interleaved rounds."
        )
    if any(math.isfinite(row["ratio_to_projection"]) for row in found):
        print(f"Projections assume {options.get('assumptions', ASSUMED)}.")
    print(f"Written: {path}")


def title(group: ConfigDict) -> str:
    """Returns the title of a group."""
    return f"{group.problem}, {group.network}, {group.config.num_seeds} lanes"


def choose(groups: Sequence[ConfigDict], part: str) -> list[ConfigDict]:
    """Returns the groups whose titles contain a text.

    Raises:
      ConfigError: there is none.
    """
    chosen = [group for group in groups if part in title(group)]
    if not chosen:
        titles = "; ".join(title(group) for group in groups)
        raise ConfigError(f"--only={part!r} matches no group; choose from: {titles}.")
    return chosen


def write_images(folder: pathlib.Path) -> None:
    """Writes random images as MNIST files, to time its problem without a download.

    They are as many as in MNIST, so that they use as much of the caches.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60_000, 28, 28), np.uint8)
    labels = random.integers(0, 10, len(images), np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        # The magic number of an IDX file: two zeros, uint8, the number of axes.
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(header + array.tobytes())


def time_group(
    group: ConfigDict,
    *,
    reference: str,
    rounds: int,
    against_torch: bool = False,
    assumptions: Assumptions = ASSUMED,
    end: float = math.inf,
) -> dict[str, Timing]:
    """Times all cases of a config against each other and against their baselines.

    Args:
      group: `problem`, the name of a program; `config`, the config of a run, whose
        lanes are timed; `steps`, updates per learner in a timed task; `parts`, `DATA`,
        `MEASURES` or both, to time their shares.
      reference: the case whose shapes bandwidth, floor and PyTorch use.
      rounds: see `take_turns`.
      against_torch: whether to time PyTorch.
      assumptions: assumptions of the projected times, with which times on accelerators
        are compared.
      end: see `take_turns`.

    Returns:
      Timings by name of the case, including `FLOOR` and `TORCH`. The status of those
      that do not fit in memory says so.

    Raises:
      ValueError: the config cannot be run.
    """
    make_problem = _make_problem_of(group.problem)
    config = complete(group.config)
    short = programs.shorten(config, group.steps)
    cases = {case.name: case for case in prepare_cases(short, make_problem)}
    whole = {}
    if MEASURES in group.parts:
        whole = {case.name: case for case in prepare_cases(config, make_problem)}
    builders: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, case in cases.items():
        builders[name, _TASK] = partial(programs.task_program, case)
        if DATA in group.parts:
            builders[name, DATA] = partial(programs.updates_program, case, group.steps)
        if MEASURES in group.parts:
            builders[name, MEASURES] = partial(programs.measures_program, whole[name])
    like = cases[reference]
    if programs.has_floor(like.config):
        builders[FLOOR, _TASK] = partial(programs.floor_program, like, group.steps)
    if against_torch:
        builders[TORCH, _TASK] = partial(torch_loop.TorchLoop, like, group.steps)
    built, failed = build(builders)
    seconds = take_turns(
        built | {_BANDWIDTH: programs.bandwidth_program()},
        rounds=rounds,
        sample_seconds=_SAMPLE_SECONDS,
        end=end,
    )
    bandwidth = programs.BANDWIDTH_BYTES / seconds[_BANDWIDTH]
    timings = {}
    for name, part in builders:
        if part != _TASK:
            continue
        lanes = 1 if name == TORCH else cases.get(name, like).num_lanes
        if (name, part) in failed:
            timings[name] = Timing(lanes, status=failed[name, part])
            continue
        program = built[name, part]
        update = seconds[name, part] / program.updates
        moved = programs.weight_bytes(cases.get(name, like)) / update
        timing = Timing(
            lanes,
            update,
            projected_seconds=_projected_seconds(program, lanes, assumptions)
            if name != TORCH
            else math.nan,
            bandwidth_share=float(np.median(moved / bandwidth)),
            compile_seconds=program.compile_seconds,
            memory_bytes=program.memory_bytes,
        )
        if (name, DATA) in built:
            alone = seconds[name, DATA] / built[name, DATA].updates
            timing = timing._replace(data_share=1 - np.median(alone / update))
        if (name, MEASURES) in built:
            measures = seconds[name, MEASURES] / lanes
            task = measures + whole[name].problem.updates_per_task * update
            timing = timing._replace(measures_share=np.median(measures / task))
        timings[name] = timing
    return timings


def _projected_seconds(
    program: programs.Program, lanes: int, assumptions: Assumptions
) -> float:
    """Projects the time of an update of a lane; NaN on an unknown device."""
    device = of_kind(jax.devices()[0].device_kind)
    if device is None:
        return math.nan
    text = program.compiled.as_text()
    work = update_work(text, program.updates // lanes)
    return project(work, device, assumptions).seconds / lanes


def build(
    builders: Mapping[Any, Callable[[], Any]],
) -> tuple[dict[Any, Any], dict[Any, str]]:
    """Builds and runs each program once; returns those that ran, and other errors."""
    built, failed = {}, {}
    with tqdm(builders.items(), unit="program", leave=False) as bar:
        for name, builder in bar:
            bar.set_description(f"compile {', '.join(name)}")
            try:
                program = builder()
                program()
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not isinstance(error, MemoryError) and (
                    "RESOURCE_EXHAUSTED" not in str(error)
                ):
                    raise
                failed[name] = f"out of memory: {str(error).splitlines()[0][:120]}"
            else:
                built[name] = program
    return built, failed


def _make_problem_of(name: str) -> Callable[[Any], Any]:
    try:
        return importlib.import_module(f"experiments.{name}").make_problem
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"{error}: name a program with a make_problem, such as permuted_mnist."
        ) from error


if __name__ == "__main__":
    _CONFIG = define_config_flag()
    command_line.define_cases_flag()
    _PRESET = flags.DEFINE_string("preset", "cpu", "Preset of configs/benchmark.py.")
    _MINUTES = flags.DEFINE_float(
        "minutes", None, f"When to stop; {_PRESET_MINUTES:g} for presets.", 0.0
    )
    _ONLY = flags.DEFINE_string("only", "", "Time only groups with this in the title.")
    _AGAINST = flags.DEFINE_enum("against", None, ["torch"], "Also time this.")
    _CSV = flags.DEFINE_string(
        "csv", None, "File of all numbers; runs/benchmark/NAME.csv by default."
    )
    _REFERENCE = flags.DEFINE_string("reference", "backprop", "Case to compare with.")
    _STEPS = flags.DEFINE_integer("steps", 1000, "Updates in a timed task.", 1)
    _ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each case is timed.", 1)
    _PARTS = flags.DEFINE_multi_enum(
        "parts", [], [DATA, MEASURES], "Part of a run whose share is measured."
    )
    _COMPILE_FOR = flags.DEFINE_enum(
        "compile_for", None, list(DEVICES), "Compile for this, and time nothing."
    )
    _DEVICES = flags.DEFINE_integer("devices", 1, "Number of accelerators.", 1)
    _HLO = flags.DEFINE_string("hlo", None, "Folder for the compiled programs.")
    _LAUNCH = flags.DEFINE_float(
        *("launch_us", 1e6 * ASSUMED.launch_seconds),
        *("Assumed time of a launch on a GPU, µs.", 0.0),
    )
    _CONDITIONAL = flags.DEFINE_float(
        *("conditional_us", 1e6 * ASSUMED.conditional_seconds),
        *("Assumed time of a conditional on a GPU, µs.", 0.0),
    )
    _BANDWIDTH_SHARE = flags.DEFINE_float(
        *("bandwidth_share", ASSUMED.bandwidth_share),
        *("Assumed share of the bandwidth that kernels reach.", 0.01, 1.0),
    )
    _BRANCH_SHARE = flags.DEFINE_float(
        *("branch_share", ASSUMED.branch_share),
        *("Assumed share of conditionals that take the longer branch.", 0.0, 1.0),
    )
    app.run(_main, flags_parser=command_line.parse_flags)

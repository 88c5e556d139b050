"""Times what belongs together: methods on one network and number of lanes.

Beside the methods run the hand-written loop and what measures the machine, so that all
ratios and shares are of the same moments.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from experiments.learning.problem import Problem
from experiments.run import config as configuration
from experiments.run.cases import Case, prepare_cases
from experiments.timing import programs
from experiments.timing.floor import has_floor
from experiments.timing.machine import Machine
from experiments.timing.rounds import Deadline, take_turns
from experiments.timing.short_tasks import shorten

FLOOR, TORCH = "floor", "torch"
"""Names of what is not a method of this project."""

DATA, MEASURES = "data", "measures"
"""Parts of a run whose shares of its time can be measured."""

# Fields in which groups differ, and cases that have been applied to the others.
_NOT_OF_AN_UPDATE = frozenset(
    ("cases", "num_seeds", "lanes_per_block", "examples_per_task", "num_epochs")
)
_UPDATES, _MEASURES = "updates alone: ", "measures: "


class Plan(NamedTuple):
    """How to time a group.

    Attributes:
      reference: the case that ratios are to, and whose shapes the floor has.
      steps: updates of a lane in a timed task.
      rounds: see `take_turns`.
      sample_seconds: see `take_turns`.
      parts: `DATA` and `MEASURES`, where their shares are wanted.
      against_torch: `(case, steps) ->` the rival's loop of one lane, None for none.
    """

    reference: str
    steps: int
    rounds: int
    sample_seconds: float
    parts: Sequence[str] = ()
    against_torch: Callable[[Case, int], Any] | None = None


class Timed(NamedTuple):
    """What was found of one program.

    Attributes:
      status: "ok", or why there is nothing.
      lanes: L.
      block: lanes that a device vmaps together.
      seconds: wall time of an update of a lane, all lanes running at once, [rounds].
      compile_seconds: of the program.
      memory_bytes: that the program needs on each device.
      peak_bytes: most that this process has held on a device so far, NaN if unknown.
      cost: of an update of one lane.
      weight_bytes: see `programs.weight_bytes`.
      data_share: of the timed task, what is not updates; NaN if not timed.
      measures_share: of a run's task, what its measures take; NaN if not timed.
    """

    status: str
    lanes: int
    block: int = 0
    seconds: np.ndarray = np.zeros(0)
    compile_seconds: float = math.nan
    memory_bytes: float = math.nan
    peak_bytes: float = math.nan
    cost: programs.Cost = programs.Cost(math.nan, math.nan)
    weight_bytes: float = math.nan
    data_share: float = math.nan
    measures_share: float = math.nan


class Group(NamedTuple):
    """All that was timed together.

    Attributes:
      timed: by name of the case, `FLOOR` and `TORCH` among them.
      stream_rate: bytes per second of the machine in each round, [rounds].
      product_rate: operations per second of the machine, [rounds].
    """

    timed: dict[str, Timed]
    stream_rate: np.ndarray
    product_rate: np.ndarray


def time_group(
    config: ConfigDict,
    make_problem: Callable[[Any], Problem],
    plan: Plan,
    machine: Machine,
    deadline: Deadline,
    costs: dict[tuple[str, str], programs.Cost],
) -> Group:
    """Times all cases of a config beside each other.

    Args:
      config: a run's config; its lanes are those of the run. Tasks are shortened.
      make_problem: builds a problem from the config of a case.
      plan: how.
      machine: what measures the machine.
      deadline: of the rounds.
      costs: those already counted, by name and config; those counted here are added, as
        they are the same for any number of lanes.

    Returns:
      What was found. What does not fit into memory is left out and says so.

    Raises:
      ValueError: a config that cannot be run.
    """
    config = configuration.complete(config)
    short = prepare_cases(shorten(config, plan.steps), make_problem)
    cases = {case.name: case for case in short}
    whole = {}
    if MEASURES in plan.parts:
        whole = {case.name: case for case in prepare_cases(config, make_problem)}
    builders: dict[str, Callable[[], Any]] = {}
    for name, case in cases.items():
        block = lanes_per_block(case)
        builders[name] = lambda c=case, b=block: programs.TaskProgram(c, b)
        if DATA in plan.parts:
            builders[_UPDATES + name] = lambda c=case, b=block: (
                programs.updates_program(c, b, plan.steps)
            )
        if MEASURES in plan.parts:
            builders[_MEASURES + name] = lambda c=whole[name], b=block: (
                programs.MeasuresProgram(c, b)
            )
    reference = cases[plan.reference]
    if has_floor(reference.config):
        builders[FLOOR] = lambda: programs.floor_program(
            reference, lanes_per_block(reference), plan.steps
        )
    if plan.against_torch is not None:
        builders[TORCH] = lambda: plan.against_torch(reference, plan.steps)
    built, failed = _build(builders)
    machine_programs = machine.programs()
    seconds = take_turns(
        built | machine_programs,
        rounds=plan.rounds,
        sample_seconds=plan.sample_seconds,
        deadline=deadline,
    )
    stream, product = (seconds[name] for name in machine_programs)
    timed = {}
    for name in (*cases, *(name for name in (FLOOR, TORCH) if name in builders)):
        case = cases.get(name, reference)
        if name in failed:
            timed[name] = Timed(failed[name], case.num_lanes)
        elif name == TORCH:
            timed[name] = Timed("ok", 1, 1, seconds[name] / built[name].lane_steps)
        else:
            cost, moved = _cost(name, case, costs), programs.weight_bytes(case)
            timed[name] = _timed(name, case, whole, built, seconds, cost, moved)
    return Group(
        timed, machine.stream_bytes / stream, machine.product_operations / product
    )


def lanes_per_block(case: Case) -> int:
    """Returns the lanes that a device vmaps together, without measuring.

    They are those of the config; where it leaves them open, one on a CPU and all on an
    accelerator.
    """
    per_device = math.ceil(case.num_lanes / len(jax.devices()))
    on_cpu = jax.default_backend() == "cpu"
    return min(per_device, case.config.lanes_per_block or (1 if on_cpu else per_device))


def _build(
    builders: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Builds and runs each program once; returns those that can, and why others not."""
    built, failed = {}, {}
    with tqdm(builders.items(), unit="program", leave=False) as bar:
        for name, builder in bar:
            bar.set_description(f"compile {name}")
            try:
                program = builder()
                program()
                built[name] = program
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not isinstance(error, MemoryError) and (
                    "RESOURCE_EXHAUSTED" not in str(error)
                ):
                    raise
                failed[name] = f"out of memory: {str(error).splitlines()[0][:120]}"
    return built, failed


def _cost(
    name: str, case: Case, known: dict[tuple[str, str], programs.Cost]
) -> programs.Cost:
    """Counts an update of a case, or of the floor, unless that has been done."""
    fields = case.config.to_dict()
    told = {field: fields[field] for field in fields.keys() - _NOT_OF_AN_UPDATE}
    key = name, json.dumps(told, sort_keys=True, default=list)
    if key not in known:
        count = programs.floor_cost if name == FLOOR else programs.update_cost
        known[key] = count(case)
    return known[key]


def _timed(
    name: str,
    case: Case,
    whole: Mapping[str, Case],
    built: Mapping[str, Any],
    seconds: Mapping[str, np.ndarray],
    cost: programs.Cost,
    weight_bytes: int,
) -> Timed:
    program, per_step = built[name], seconds[name] / built[name].lane_steps
    data_share = measures_share = math.nan
    if _UPDATES + name in built:
        updates = seconds[_UPDATES + name] / built[_UPDATES + name].lane_steps
        data_share = 1 - np.median(updates / per_step)
    if _MEASURES + name in built:
        measures = seconds[_MEASURES + name] / case.num_lanes
        task = measures + whole[name].problem.updates_per_task * per_step
        measures_share = np.median(measures / task)
    stats = jax.local_devices()[0].memory_stats() or {}
    return Timed(
        status="ok",
        lanes=case.num_lanes,
        block=lanes_per_block(case),
        seconds=per_step,
        compile_seconds=program.compile_seconds,
        memory_bytes=program.memory_bytes,
        peak_bytes=stats.get("peak_bytes_in_use", math.nan),
        cost=cost,
        weight_bytes=weight_bytes,
        data_share=data_share,
        measures_share=measures_share,
    )

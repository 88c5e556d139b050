"""Goes through the groups of a preset, within a limit of time, losing nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from experiments.learning.checks import ConfigError
from experiments.learning.problem import Problem
from experiments.timing import programs
from experiments.timing.groups import Group, Plan, Timed, time_group
from experiments.timing.machine import Machine
from experiments.timing.rounds import Deadline
from experiments.timing.table import CsvFile, Row, rows

_NO_TIME = "no time left"


def time_groups(
    groups: Sequence[ConfigDict],
    make_problem_of: Callable[[str], Callable[[Any], Problem]],
    plan: Plan,
    machine: Machine,
    deadline: Deadline,
    csv_file: CsvFile,
) -> Iterator[list[Row]]:
    """Times one group after the other; what is done is in the file at once.

    A group that does not fit into memory, or for which there is no time, has rows that
    say so, and the next one begins.

    Args:
      groups: as in configs/benchmark.py.
      make_problem_of: from the name of a problem to what builds it.
      plan: for all of them, but for what a group sets itself.
      machine: what measures the machine.
      deadline: of all together. A group is not begun if it would take longer, as far
        as those before it tell.
      csv_file: where rows go.

    Yields:
      The rows of each group.
    """
    costs: dict[tuple[str, str], programs.Cost] = {}
    taken: dict[tuple[str, str], float] = {}
    for index, group in enumerate(groups):
        start = time.monotonic()
        kind = group.problem, group.network
        expected = taken.get(kind, np.mean([*taken.values()]) if taken else 0.0)
        own_plan = plan._replace(steps=group.steps, parts=group.parts)
        if deadline.seconds_left < expected:
            timed = _without(group.config, _NO_TIME)
        else:
            # A slice of what is left, so that a slow group leaves time to the others.
            own = Deadline(2 * deadline.seconds_left / (len(groups) - index))
            make_problem = make_problem_of(group.problem)
            timed = _try_group(
                group.config, make_problem, own_plan, machine, own, costs
            )
            taken[kind] = time.monotonic() - start
        new = rows(
            timed,
            problem=group.problem,
            network=group.network,
            reference=plan.reference,
            where=where(),
        )
        csv_file.append(new)
        yield new


def where() -> dict[str, str]:
    """Says what the numbers are of: the devices, and the version of JAX."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return {"device": kind, "jax": jax.__version__}


def title(group: ConfigDict) -> str:
    """Names a group."""
    return f"{group.problem}, {group.network}, {group.config.num_seeds} lanes"


def choose(groups: Sequence[ConfigDict], part: str) -> list[ConfigDict]:
    """Returns the groups with that in their titles.

    Raises:
      ConfigError: there is none.
    """
    chosen = [group for group in groups if part in title(group)]
    if not chosen:
        titles = "; ".join(title(group) for group in groups)
        raise ConfigError(
            f"--only={part!r} is part of no group's name; choose from: {titles}."
        )
    return chosen


def line(new: Sequence[Row]) -> str:
    """Says what was found in a group."""
    return ", ".join(
        f"{row['method']} {row['us_per_lane_step']:.3g} µs"
        if row["rounds"]
        else f"{row['method']}: {row['status']}"
        for row in new
    )


def projection(found: Iterable[Row], paper: Mapping[str, Any]) -> list[str]:
    """Says how long the paper's run would take at the best rate found.

    Args:
      found: all rows.
      paper: `network`, and `lane_steps` of the run of one method.
    """
    best: dict[str, Row] = {}
    for row in found:
        rate = row["lane_steps_per_second"]
        if row["network"] != paper["network"] or math.isnan(rate):
            continue
        before = best.get(row["method"])
        if before is None or rate > before["lane_steps_per_second"]:
            best[row["method"]] = row
    return [
        f"{paper['lane_steps']:,} updates of {paper['network']} units by {name}: "
        f"{paper['lane_steps'] / row['lane_steps_per_second'] / 3600:,.1f} hours at "
        f"the rate of {row['lanes']} lanes"
        for name, row in best.items()
    ]


def _try_group(config: ConfigDict, *arguments: Any) -> Group:
    """Times a group, or says why not, where that is for want of memory."""
    try:
        return time_group(config, *arguments)
    except MemoryError as error:
        reason = str(error)
    except ValueError as error:
        # So says the check of a config's lanes.
        if "of memory" not in str(error):
            raise
        reason = str(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    return _without(config, f"out of memory: {reason[:120]}")


def _without(config: ConfigDict, reason: str) -> Group:
    lanes = config.num_seeds
    timed = {name: Timed(reason, lanes) for name in config.cases}
    return Group(timed, np.zeros(0), np.zeros(0))

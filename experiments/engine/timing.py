"""How long the updates of each case take, beside each other."""

from collections.abc import Callable
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from experiments.engine.blocks import choose_block
from experiments.engine.cases import CompiledCase, prepare_cases
from experiments.engine.configuration import complete
from experiments.learning.problem import Problem


def time_cases(
    config: Any,
    make_problem: Callable[[Any], Problem],
    *,
    steps: int,
    rounds: int,
) -> dict[str, np.ndarray]:
    """Times one short task of every case after the other, again and again.

    Machines speed up and slow down, so what is compared must alternate: each round
    times all cases. Only the first examples of a task are measured, and no ranks, so
    that the updates are what is timed.

    Args:
      config: a run's config; its lanes are those of the run.
      make_problem: builds a problem from the config of a case.
      steps: updates of a lane in a timed task.
      rounds: how often each case is timed.

    Returns:
      For each case the wall time of an update of a lane, all lanes running at once:
      seconds, float64 [rounds].

    Raises:
      ValueError: a config that cannot be run.
    """
    config = _short(complete(config), steps)
    running = {}
    cases = prepare_cases(config, make_problem)
    with tqdm(total=len(cases) * (1 + rounds), unit="task", dynamic_ncols=True) as bar:
        for case in cases:
            bar.set_description(f"compile {case.name}")
            compiled = CompiledCase(case, choose_block(case, make_problem))
            state, *_ = compiled.run_task(compiled.start(None), 0)
            running[case.name] = case, compiled, state
            bar.update()
        seconds: dict[str, list[float]] = {case.name: [] for case in cases}
        for task in range(1, rounds + 1):
            for name, (case, compiled, state) in running.items():
                bar.set_description(f"time {name}")
                start = time.perf_counter()
                state, *_ = compiled.run_task(state, task)
                elapsed = time.perf_counter() - start
                seconds[name].append(elapsed / case.steps_per_task)
                running[name] = case, compiled, state
                bar.update()
    return {name: np.array(values) for name, values in seconds.items()}


def _short(config: ConfigDict, steps: int) -> ConfigDict:
    """Shortens the tasks of all cases to so many updates."""
    short = ConfigDict(config.to_dict())
    for case in short.cases.values():
        batch_size = case.get("batch_size", config.batch_size)
        if "num_epochs" in config:
            train_per_class = case.get("train_per_class", config.train_per_class)
            batches = 2 * train_per_class / batch_size
            case.num_epochs = max(1, round(steps / batches))
        else:
            case.examples_per_task = steps * batch_size
    # Batch normalization cannot be measured on a single example.
    for field, value in (("measured_examples", 2), ("rank_every", 0)):
        short[field] = value
        for case in short.cases.values():
            if field in case:
                case[field] = value
    short.replacement_log = 0
    return short

"""A case: its lanes, its problem, and its compiled program.

Shapes: L lanes.
"""

from collections.abc import Callable, Sequence
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning.checks import ConfigError
from experiments.learning.problem import Measured, Problem
from experiments.learning.replacement_log import ReplacementLog
from experiments.run import machine, storage
from experiments.run.config import (
    Lane,
    LaneGrid,
    lane_hyperparameters,
    lane_key,
    make_cases,
    make_grid,
)
from experiments.run.lanes import LaneMap, all_finite

_LONG_TASK = 0.1  # Seconds for which signals may wait.


class Case(NamedTuple):
    """A case ready to run."""

    name: str
    config: Any
    grid: LaneGrid
    problem: Problem

    @property
    def num_lanes(self) -> int:
        """L, the number of lanes of the case."""
        return math.prod(self.grid.shape)

    @property
    def updates_per_task_all_lanes(self) -> int:
        """Updates in one task, over all lanes."""
        return self.problem.updates_per_task * self.num_lanes

    def check_lanes(self, saved: int) -> None:
        """Raises CheckpointError if a checkpoint has another number of lanes."""
        if saved != self.num_lanes:
            raise storage.CheckpointError(
                f"The checkpoint of case {self.name!r} contains {saved} lanes, but in "
                f"this run the case has {self.num_lanes}. Earlier versions of cbp_jax "
                "also trained it once for each value in config.sweep of "
                "hyperparameters that it does not take. Continue with that version, "
                "pass --overwrite to start from scratch, or pass another --workdir."
            )


class LaneState(NamedTuple):
    """What a lane carries from task to task."""

    learner: Any
    has_diverged: jax.Array  # bool scalar


def prepare_cases(config: Any, make_problem: Callable[[Any], Problem]) -> list[Case]:
    """Builds all cases and traces them once, so that every mistake is found early.

    Args:
      config: the run's config.
      make_problem: builds a problem from the config of a case.

    Returns:
      The cases in order.

    Raises:
      ValueError: the config cannot be run.
    """
    cases = []
    for name, case_config in make_cases(config).items():
        grid = make_grid(case_config)
        try:
            problem = make_problem(case_config)
        except AttributeError as error:
            _check_is_a_field(error, case_config)
            raise
        lane = jax.tree.map(lambda leaf: leaf[0], grid.lanes)
        state = jax.eval_shape(_init_lane(case_config, problem), lane)
        machine.check_fits(name, case_config, state, len(grid.lanes.seed))
        task = jax.ShapeDtypeStruct((), jnp.int32)
        run_lane = _run_lane(case_config, problem)
        jax.eval_shape(run_lane, state, lane, task, problem.data)
        cases.append(Case(name, case_config, grid, problem))
    return cases


def _check_is_a_field(error: AttributeError, config: Any) -> None:
    """Raises ConfigError if an error is about a field that the config does not have."""
    name = str(error).strip("'\"")
    if name.isidentifier() and name not in config:
        raise ConfigError(
            f"The config has no field {name!r}, which the problem needs. Is it the "
            "config of another program?"
        ) from error


class CompiledCase:
    """The compiled functions of a case and its lanes on the devices.

    Args:
      case: the case.
      block: lanes that a device vmaps together, see `LaneMap`.
    """

    def __init__(self, case: Case, block: int):
        self._name = case.name
        self._map = LaneMap(case.num_lanes, block)
        self._lanes = self._map.put(case.grid.lanes)
        self._data = self._map.replicate(case.problem.data)
        self._init = self._map.jit(_init_lane(case.config, case.problem))
        self._run_task = self._map.jit(
            _run_lane(case.config, case.problem), num_shared=2, donate=True
        )
        self._to_data = jax.jit(storage.keys_to_data)
        self._is_long = True  # Whether the last task was long; the first one compiles.

    def start(self, saved: dict[str, np.ndarray] | None) -> Any:
        """Initializes all lanes, or restores them from a checkpoint."""
        if saved is None:
            return self._init(self._lanes)
        like = jax.eval_shape(self._init, self._lanes)
        data = storage.from_dict(saved, like, self._name)
        return storage.data_to_keys(self._map.put(data), like)

    def run_task(
        self, state: Any, task: int
    ) -> tuple[Any, dict[str, np.ndarray], ReplacementLog | None]:
        """Runs one task of all lanes.

        Args:
          state: state of all lanes; its memory is reused.
          task: number of the task.

        Returns:
          The new state; the metrics, arrays [L, ...], NaN where a lane has diverged or
          nothing was measured; and the replacement log, with a leading axis of L
          lanes, if it is enabled.
        """
        start = time.perf_counter()
        state, metrics, log = self._run_task(
            state, self._lanes, np.int32(task), self._data
        )
        if self._is_long:
            _wait(metrics)
        metrics, log = self._map.get((metrics, log))
        self._is_long = time.perf_counter() - start > _LONG_TASK
        return state, {name: np.asarray(found) for name, found in metrics.items()}, log

    def compile_task(self, state: Any) -> jax.stages.Compiled:
        """Compiles a task ahead of time, without running it.

        Args:
          state: state of all lanes, or its shapes.
        """
        arguments = state, self._lanes, np.int32(0), self._data
        return self._run_task.lower(*arguments).compile()

    def memory_needed(self) -> int:
        """Returns the bytes that a task needs on each device."""
        state = jax.eval_shape(self._init, self._lanes)
        return machine.bytes_needed(self.compile_task(state))

    def fetch(self, state: Any) -> dict[str, np.ndarray]:
        """Copies the state of all lanes to the host."""
        return storage.to_dict(self._map.get(self._to_data(state)))


def lower_task(
    case: Case, devices: Sequence[Any], block: int = 0
) -> jax.stages.Lowered:
    """Lowers the task of a case for devices that this machine need not have.

    Args:
      case: the case.
      devices: devices for its lanes, such as those of a
        `jax.experimental.topologies` description.
      block: lanes that a device vmaps together, 0 for all of its lanes.

    Returns:
      The lowered program that `CompiledCase` would run on such devices.
    """
    lane_map = LaneMap(case.num_lanes, block, devices)
    lanes = lane_map.like_put(case.grid.lanes)
    init = jax.vmap(_init_lane(case.config, case.problem))
    state = lane_map.like_put(jax.eval_shape(init, lanes))
    run_task = lane_map.jit(
        _run_lane(case.config, case.problem), num_shared=2, donate=True
    )
    shared = lane_map.like_replicated((np.int32(0), case.problem.data))
    return run_task.lower(state, lanes, *shared)


def _wait(tree: Any) -> None:
    """Waits for arrays, as JAX does, but lets Python handle signals meanwhile."""
    start = time.perf_counter()
    leaves = jax.tree.leaves(tree)
    while not all(leaf.is_ready() for leaf in leaves):
        passed = time.perf_counter() - start
        time.sleep(min(max(passed / 200, 1e-4), 0.05))


def _init_lane(config: Any, problem: Problem) -> Callable[[Lane], LaneState]:
    def init(lane: Lane) -> LaneState:
        hyperparameters = lane_hyperparameters(config, lane)
        learner = problem.learner.init(hyperparameters, lane_key(lane))
        return LaneState(learner, jnp.zeros((), bool))

    return init


def _run_lane(config: Any, problem: Problem) -> Callable[..., Any]:
    """Returns a function that runs a task of a lane; its metrics end if it diverges."""

    def run_task(
        state: LaneState, lane: Lane, task: jax.Array, data: Any
    ) -> tuple[LaneState, dict[str, Measured], ReplacementLog | None]:
        learner = state.learner
        if learner.log is not None:
            learner = learner._replace(log=jax.tree.map(jnp.zeros_like, learner.log))
        learner, metrics = problem.run_task(
            lane_hyperparameters(config, lane), learner, lane_key(lane), task, data
        )
        is_finite = all_finite((learner.params, metrics["loss"]))
        has_diverged = state.has_diverged | ~is_finite
        metrics = {
            name: _unless_diverged(found, has_diverged)
            for name, found in metrics.items()
        }
        log = learner.log
        if log is not None:  # Its steps count from the start of the task.
            log = log._replace(step=log.step - task * problem.updates_per_task)
        return LaneState(learner, has_diverged), metrics, log

    return run_task


def _unless_diverged(metric: jax.Array | Measured, has_diverged: jax.Array) -> Measured:
    if not isinstance(metric, Measured):
        metric = Measured(metric, jnp.ones(metric.shape, bool))
    return Measured(metric.values, metric.is_measured & ~has_diverged)

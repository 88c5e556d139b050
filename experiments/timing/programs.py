"""Programs to time: a task as a run has it, and its parts alone.

Each is compiled when it is built, runs all lanes to the end when it is called, and
knows how long it took to compile and how much memory it takes.

Shapes: L lanes, K batches, B batch.
"""

from collections.abc import Callable
import math
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.learning.measures import layer_measures
from experiments.run import machine as memory
from experiments.run.cases import Case, CompiledCase
from experiments.run.config import lane_hyperparameters as lane_settings
from experiments.run.config import lane_key
from experiments.run.lanes import LaneMap
from experiments.timing.batches import NUM_BATCHES, example_shape, make_batches
from experiments.timing.floor import made_up_params, make_update


class Cost(NamedTuple):
    """What a step of one lane does, by XLA's count of the compiled program."""

    operations: float
    bytes: float  # Read and written by its fused parts, caches not considered.


class TaskProgram:
    """A task of all lanes as a run has it; each call runs the next one.

    Args:
      case: with short tasks.
      block: lanes that a device vmaps together.

    Raises:
      MemoryError: it would not fit.
    """

    def __init__(self, case: Case, block: int):
        self._compiled = CompiledCase(case, block)
        self._state = self._compiled.start(None)
        self._task = 0
        start = time.perf_counter()
        program = self._compiled.compile_task(self._state)
        self.compile_seconds = time.perf_counter() - start
        self.memory_bytes = _checked_bytes(program)
        self.lane_steps = case.updates_per_task_all_lanes

    def __call__(self) -> None:
        """Runs the next task."""
        self._state, *_ = self._compiled.run_task(self._state, self._task)
        self._task += 1


class LoopProgram:
    """A bare loop over updates of all lanes, on made-up batches.

    Args:
      case: whose lanes are run.
      block: lanes that a device vmaps together.
      init: `lane -> carry`.
      update: `(lane, carry, inputs, targets) -> carry`.
      batches: `lane -> (inputs [K, B, ...], targets [K, B])`.
      steps: updates of a lane in a call.

    Raises:
      MemoryError: it would not fit.
    """

    def __init__(
        self,
        case: Case,
        block: int,
        init: Callable[[Any], Any],
        update: Callable[..., Any],
        batches: Callable[[Any], Any],
        steps: int,
    ):
        def start(lane: Any) -> tuple[Any, Any]:
            return init(lane), batches(lane)

        def loop(carry: Any, lane: Any, batches: Any) -> Any:
            def body(number: jax.Array, carry: Any) -> Any:
                # Unsigned, since a negative index would have to be looked for.
                index = number.astype(jnp.uint32) % NUM_BATCHES
                batch = jax.tree.map(
                    lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False),
                    batches,
                )
                return update(lane, carry, *batch)

            return lax.fori_loop(0, steps, body, carry)

        lane_map = LaneMap(case.num_lanes, block)
        self._lanes = lane_map.put(case.grid.lanes)
        self._carry, self._batches = lane_map.jit(start)(self._lanes)
        self._loop = lane_map.jit(loop, donate=True)
        began = time.perf_counter()
        program = self._loop.lower(self._carry, self._lanes, self._batches).compile()
        self.compile_seconds = time.perf_counter() - began
        self.memory_bytes = _checked_bytes(program)
        self.lane_steps = steps * case.num_lanes

    def __call__(self) -> None:
        """Makes the updates."""
        self._carry = jax.block_until_ready(
            self._loop(self._carry, self._lanes, self._batches)
        )


def floor_program(case: Case, block: int, steps: int) -> LoopProgram:
    """Builds the hand-written loop on the shapes of a case, see `floor.make_update`."""
    params = param_shapes(case)
    update = make_update(case.config, case.problem.learner.layers)

    def init(lane: Any) -> Any:
        return _floor_carry(case.config, params, lane.seed)

    def step(lane: Any, carry: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        del lane
        return update(carry, inputs, targets)

    return LoopProgram(case, block, init, step, batches_of(case, params), steps)


def updates_program(case: Case, block: int, steps: int) -> LoopProgram:
    """Builds a case's updates alone, without its stream and its measures."""
    learner, config = case.problem.learner, case.config

    def init(lane: Any) -> Any:
        return learner.init(lane_settings(config, lane), lane_key(lane))

    def step(lane: Any, state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        return learner.step(lane_settings(config, lane), state, inputs, targets)[0]

    batches = batches_of(case, param_shapes(case))
    return LoopProgram(case, block, init, step, batches, steps)


class MeasuresProgram:
    """The measures that a run takes before a task, of all lanes; ranks included.

    Args:
      case: with its measures as a run has them.
      block: lanes that a device vmaps together.
    """

    def __init__(self, case: Case, block: int):
        learner, config = case.problem.learner, case.config
        shape = example_shape(config, case.problem, param_shapes(case))

        def init(lane: Any) -> Any:
            return learner.init(lane_settings(config, lane), lane_key(lane))

        def measure(state: Any, lane: Any) -> Any:
            inputs, targets = make_batches(
                shape, config.measured_examples, 1, lane.seed
            )
            return layer_measures(
                config,
                learner,
                lane_settings(config, lane),
                state,
                inputs[0],
                targets[0],
                jnp.int32(0),
            )

        lane_map = LaneMap(case.num_lanes, block)
        self._lanes = lane_map.put(case.grid.lanes)
        self._state = lane_map.jit(init)(self._lanes)
        self._measure = lane_map.jit(measure)
        _checked_bytes(self._measure.lower(self._state, self._lanes).compile())

    def __call__(self) -> None:
        """Measures once."""
        jax.block_until_ready(self._measure(self._state, self._lanes))


def update_cost(case: Case) -> Cost:
    """Counts what an update of a case does, compiled alone for one lane."""
    learner, config = case.problem.learner, case.config
    lane = jax.tree.map(lambda leaf: leaf[0], case.grid.lanes)
    settings = lane_settings(config, lane)
    state = jax.eval_shape(lambda: learner.init(settings, lane_key(lane)))

    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        return learner.step(settings, state, inputs, targets)[0]

    return cost_of(jax.jit(step, donate_argnums=0), state, *_batch_shapes(case))


def floor_cost(case: Case) -> Cost:
    """Counts what a step of the hand-written loop does."""
    params = param_shapes(case)
    update = make_update(case.config, case.problem.learner.layers)
    carry = jax.eval_shape(lambda: _floor_carry(case.config, params, jnp.uint32(0)))
    return cost_of(jax.jit(update, donate_argnums=0), carry, *_batch_shapes(case))


def cost_of(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Compiles a function and counts what it does.

    Args:
      function: jitted. Of a loop one round is counted, of a branch the dearer side.
      *arguments: arrays or their shapes.

    Returns:
      The cost; NaN where this backend does not say.
    """
    counted = function.lower(*arguments).compile().cost_analysis() or {}
    return Cost(counted.get("flops", np.nan), counted.get("bytes accessed", np.nan))


def weight_bytes(case: Case) -> int:
    """Returns the bytes of weights that a step must move if no cache keeps any.

    They are read forward, read backward, and read and written by the update.
    """
    leaves = jax.tree.leaves(param_shapes(case))
    return 4 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def param_shapes(case: Case) -> Any:
    """Returns the shapes of a learner's params."""
    lane = jax.tree.map(lambda leaf: leaf[0], case.grid.lanes)
    settings = lane_settings(case.config, lane)
    init = case.problem.learner.init
    return jax.eval_shape(lambda: init(settings, lane_key(lane))).params


def _floor_carry(config: Any, params: Any, seed: jax.Array) -> Any:
    made_up = made_up_params(params, seed)
    momenta = jax.tree.map(jnp.zeros_like, made_up) if config.momentum else ()
    return made_up, momenta


def batches_of(case: Case, params: Any) -> Callable[[Any], Any]:
    """Returns what makes up the batches of a lane, given the shapes of its params."""
    shape = example_shape(case.config, case.problem, params)
    batch_size = case.config.batch_size
    return lambda lane: make_batches(shape, batch_size, NUM_BATCHES, lane.seed)


def _batch_shapes(case: Case) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    lane = jax.tree.map(lambda leaf: leaf[0], case.grid.lanes)
    batches = jax.eval_shape(lambda: batches_of(case, param_shapes(case))(lane))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches
    )


def _checked_bytes(program: jax.stages.Compiled) -> int:
    """Returns the bytes a program needs on each device, if it has them."""
    needed = memory.bytes_needed(program)
    # The devices of a CPU share its memory.
    devices = jax.local_devices()
    sharing = len(devices) if devices[0].platform == "cpu" else 1
    if needed * sharing > memory.device_limit():
        raise MemoryError(f"needs {needed:,} bytes on each device")
    return needed

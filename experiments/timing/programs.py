"""The programs that are timed: a task of a run, its parts, and the floor.

The floor is the least work of an update: a hand-written network and SGD, on batches
that already exist. Only its convolution and max-pooling are those of the library, which
are the fastest ones known on a CPU.

Shapes: L lanes, K batches, B batch.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
import time
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from cbp_jax import networks
from experiments.learning.measures import layer_measures
from experiments.run import machine
from experiments.run.cases import Case, CompiledCase
from experiments.run.config import lane_hyperparameters, lane_key
from experiments.run.lanes import LaneMap

NUM_BATCHES = 4
"""K, the batches that a loop cycles through; a power of 2, so that division is fast."""

BANDWIDTH_BYTES = 3 * 2**29
"""The bytes that `bandwidth_program` moves: it reads two vectors and writes one."""


class Program:
    """A compiled program of all lanes; each call continues where the last one ended.

    Args:
      compiles: `carry -> program`, returns the compiled program.
      run: `carry -> carry`, runs the program to its end.
      carry: the initial carry; `run` may reuse its memory.
      updates: number of updates in a call, over all lanes.

    Raises:
      MemoryError: it would not fit in memory.
    """

    def __init__(
        self,
        compiles: Callable[[Any], jax.stages.Compiled],
        run: Callable[[Any], Any],
        carry: Any,
        updates: int,
    ):
        began = time.perf_counter()
        compiled = compiles(carry)
        self.compile_seconds = time.perf_counter() - began
        self.compiled = compiled
        self.memory_bytes = machine.bytes_needed(compiled)
        # The devices of a CPU share its memory.
        devices = jax.local_devices()
        sharing = len(devices) if devices[0].platform == "cpu" else 1
        if self.memory_bytes * sharing > machine.device_limit():
            raise MemoryError(f"needs {self.memory_bytes:,} bytes on each device")
        self._run, self._carry, self.updates = run, carry, updates

    def __call__(self) -> None:
        """Runs the program to its end."""
        self._carry = self._run(self._carry)


def task_program(case: Case) -> Program:
    """Builds the task of a run; each call runs the next task."""
    compiled = CompiledCase(case, lanes_per_block(case))
    tasks = itertools.count()

    def run(state: Any) -> Any:
        return compiled.run_task(state, next(tasks))[0]

    updates = case.problem.updates_per_task * case.num_lanes
    return Program(compiled.compile_task, run, compiled.start(None), updates)


def updates_program(case: Case, steps: int) -> Program:
    """Builds `steps` updates of each learner, without its stream and measures."""

    def update(lane: Any, state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        hyperparameters = lane_hyperparameters(case.config, lane)
        return case.problem.learner.step(hyperparameters, state, inputs, targets)[0]

    return _loop_program(case, update, _start(case), steps)


def floor_program(case: Case, steps: int) -> Program:
    """Builds `steps` updates of `hand_written_update` on the shapes of a case."""
    by_hand = hand_written_update(case.config, case.problem.learner.layers)
    params = _start(case).params
    momenta = jax.tree.map(jnp.zeros_like, params) if case.config.momentum else ()

    def update(lane: Any, carry: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        del lane
        return by_hand(carry, inputs, targets)

    return _loop_program(case, update, (params, momenta), steps)


def measures_program(case: Case) -> Program:
    """Builds the measures that a run takes before a task, including ranks.

    Args:
      case: a case of the run, with tasks of full length.
    """
    config, learner = case.config, case.problem.learner
    lane_map = _lane_map(case)
    lanes = lane_map.put(case.grid.lanes)
    batch = make_batches(case, 1, 1, config.measured_examples)
    # All lanes measure the same examples, so that these are in memory only once.
    inputs, targets = lane_map.replicate([leaf[0, 0] for leaf in batch])

    def measure(state: Any, lane: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        hyperparameters = lane_hyperparameters(config, lane)
        return layer_measures(
            config, learner, hyperparameters, state, inputs, targets, jnp.int32(0)
        )

    jitted = lane_map.jit(measure, num_shared=2)

    def run(state: Any) -> Any:
        jax.block_until_ready(jitted(state, lanes, inputs, targets))
        return state

    return Program(
        lambda state: jitted.lower(state, lanes, inputs, targets).compile(),
        run,
        _start(case),
        updates=0,
    )


@functools.cache
def bandwidth_program() -> Callable[[], None]:
    """Builds a program that only moves memory: it adds a long vector to another.

    The sum is in place. The vectors are sharded over all devices and far larger than
    their caches.
    """
    devices = jax.devices()
    mesh = Mesh(np.asarray(devices), ("devices",))
    shape = len(devices), BANDWIDTH_BYTES // 3 // 4 // len(devices)
    make = jax.jit(
        lambda: jnp.full(shape, 1e-3, jnp.float32),
        out_shardings=NamedSharding(mesh, PartitionSpec("devices")),
    )
    add = jax.jit(lambda total, term: total + term, donate_argnums=0)
    total, term = make(), make()

    def run() -> None:
        nonlocal total
        total = jax.block_until_ready(add(total, term))

    return run


def shorten(config: ConfigDict, steps: int) -> ConfigDict:
    """Shortens the tasks of all cases to `steps` updates, or the closest with epochs.

    Only the first two examples of a task are measured, and no ranks, so that mainly the
    updates are timed.

    Args:
      config: a run's complete config, which is not changed.
      steps: updates of a learner in a task.
    """
    short = ConfigDict(config.to_dict())
    # Batch normalization cannot be measured on a single example.
    fixed = {"measured_examples": 2, "rank_every": 0, "replacement_log": 0}
    short.update(fixed)
    for case in short.cases.values():
        fields = config.to_dict() | case.to_dict()
        if "num_epochs" in config:
            batches = 2 * fields["train_per_class"] / fields["batch_size"]
            case.num_epochs = max(1, round(steps / batches))
        else:
            case.examples_per_task = steps * fields["batch_size"]
        case.update({field: value for field, value in fixed.items() if field in case})
    return short


def lanes_per_block(case: Case) -> int:
    """Returns the lanes that a device vmaps together, without measuring.

    This is the config's number; if that is 0, one on a CPU and all on an accelerator.
    """
    per_device = math.ceil(case.num_lanes / len(jax.devices()))
    on_cpu = jax.default_backend() == "cpu"
    return min(per_device, case.config.lanes_per_block or (1 if on_cpu else per_device))


def param_shapes(case: Case) -> Any:
    """Returns the shapes of a learner's params."""
    lane = jax.tree.map(lambda leaf: leaf[0], case.grid.lanes)
    return jax.eval_shape(_init(case), lane).params


def weight_bytes(case: Case) -> int:
    """Returns the bytes of weights that an update must move without caches.

    They are read in the forward pass, read in the backward pass, and read and written
    by the update.
    """
    leaves = jax.tree.leaves(param_shapes(case))
    return 4 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def least_bytes(case: Case) -> int:
    """Returns the bytes that an update of all lanes must move without caches.

    The params are read in the forward pass. Then the params, the optimizer's state and
    the rest of the state are read and written once, with nothing in between.
    """
    lane = jax.tree.map(lambda leaf: leaf[0], case.grid.lanes)
    state = jax.eval_shape(_init(case), lane)._replace(log=None)

    def size(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    return case.num_lanes * (size(state.params) + 2 * size(state))


def make_batches(
    case: Case, num_lanes: int, number: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Creates random batches with the shapes that a learner sees.

    Args:
      case: case of the learner.
      num_lanes: L.
      number: K.
      batch_size: B.

    Returns:
      Float32 inputs between 0 and 1, `[L, K, B, ...]`, and int32 labels or float32
      targets `[L, K, B]`.
    """
    config, problem = case.config, case.problem
    shapes = param_shapes(case)
    kernels = [shapes[layer]["kernel"].shape for layer in problem.learner.layers]
    if "conv_channels" not in config:
        example = kernels[0][:1]
    elif isinstance(problem.data, dict) and "images" in problem.data:
        example = problem.data["images"].shape[1:]
    elif getattr(problem.data, "train", None) is not None:
        example = problem.data.train.shape[2:]
    else:
        example = config.texture_pixels, config.texture_pixels, 3
    random = np.random.default_rng(0)
    shape = num_lanes, number, batch_size
    inputs = random.random((*shape, *example), np.float32)
    if kernels[-1][-1] == 1:
        return inputs, random.random(shape, np.float32)
    return inputs, random.integers(0, kernels[-1][-1], shape, np.int32)


def has_floor(config: Any) -> bool:
    """Whether a case has a floor: only layers, plain activations and SGD."""
    return (
        config.normalization == "none"
        and config.activation in networks.ACTIVATIONS.keys() - networks.PAIRED.keys()
        and config.optimizer == "sgd"
    )


def hand_written_update(config: Any, names: Sequence[str]) -> Callable[..., Any]:
    """Returns one update of the floor: forward, backward, SGD.

    Args:
      config: a config with `activation`, `step_size`, `momentum`, and `convolution` if
        there are convolutions.
      names: names of the layers in forward order, the head last.

    Returns:
      `(carry, inputs, targets) -> carry`, where the carry is `(params, momenta)`. Both
      are trees of `kernel` and `bias` by layer; momenta are `()` if momentum is 0.
    """
    activation = networks.activation_function(config.activation)

    def forward(params: Any, hidden: jax.Array) -> jax.Array:
        for name in names:
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            if kernel.ndim == 4:
                convolve = networks.convolution_named(config.convolution)
                numbers = "NHWC", "HWIO", "NHWC"
                hidden = convolve(
                    hidden, kernel, (1, 1), "VALID", dimension_numbers=numbers
                )
                hidden = networks.max_pool(activation(hidden + bias), (2, 2))
                continue
            hidden = hidden.reshape(hidden.shape[0], -1) @ kernel + bias
            if name != names[-1]:
                hidden = activation(hidden)
        return hidden

    def loss_of(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        outputs = forward(params, inputs)
        if outputs.shape[-1] == 1:
            return jnp.mean((outputs[:, 0] - targets) ** 2)
        chosen = jnp.take_along_axis(outputs, targets[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - chosen)

    def update(carry: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        params, momenta = carry
        grads = jax.grad(loss_of)(params, inputs, targets)
        if config.momentum:
            grads = momenta = jax.tree.map(
                lambda grad, momentum: grad + config.momentum * momentum, grads, momenta
            )
        params = jax.tree.map(
            lambda param, grad: param - config.step_size * grad, params, grads
        )
        return params, momenta

    return update


def _loop_program(
    case: Case, update: Callable[..., Any], carry: Any, steps: int
) -> Program:
    """Builds a plain loop over updates of all lanes, on random batches.

    Args:
      case: the case whose lanes run.
      update: `(lane, carry, inputs, targets) -> carry`.
      carry: carry of all lanes, on the devices.
      steps: updates of a lane in a call.
    """

    def loop(carry: Any, lane: Any, batches: Any) -> Any:
        def body(number: jax.Array, carry: Any) -> Any:
            # Unsigned, since JAX adds code for indices that may be negative.
            index = number.astype(jnp.uint32) % NUM_BATCHES
            batch = jax.tree.map(
                lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False),
                batches,
            )
            return update(lane, carry, *batch)

        return lax.fori_loop(0, steps, body, carry)

    lane_map = _lane_map(case)
    lanes = lane_map.put(case.grid.lanes)
    batches = lane_map.put(
        make_batches(case, case.num_lanes, NUM_BATCHES, case.config.batch_size)
    )
    jitted = lane_map.jit(loop, donate=True)
    return Program(
        lambda carry: jitted.lower(carry, lanes, batches).compile(),
        lambda carry: jax.block_until_ready(jitted(carry, lanes, batches)),
        carry,
        steps * case.num_lanes,
    )


def _lane_map(case: Case) -> LaneMap:
    return LaneMap(case.num_lanes, lanes_per_block(case))


def _init(case: Case) -> Callable[[Any], Any]:
    """Returns the function that initializes the learner of a lane."""
    init = case.problem.learner.init
    return lambda lane: init(lane_hyperparameters(case.config, lane), lane_key(lane))


def _start(case: Case) -> Any:
    """Initializes the learners of all lanes."""
    lane_map = _lane_map(case)
    return lane_map.jit(_init(case))(lane_map.put(case.grid.lanes))

"""Lanes: every seed times every point of a sweep, one flat axis of one program.

A lane is one learner. Inside a device lanes are vmapped or taken one block after the
other; devices split the lane axis between them and never wait for each other.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from experiments.engine import distributed
from experiments.learning.checks import ConfigError
from experiments.learning.keys import make_key
from experiments.learning.methods import HYPER_PARAMETERS

_LAST_SEED = 2**32 - 1
_MOST_LANES = 10_000_000

_AXIS = "lanes"


class Lane(NamedTuple):
    """What tells lanes apart: arrays [L], or scalars inside one lane."""

    seed: jax.Array  # uint32
    hyper_parameters: dict[str, jax.Array]  # float32


class LaneGrid(NamedTuple):
    """The lanes of a case in the order (swept values ..., seed)."""

    lanes: Lane  # NumPy arrays [L]
    coordinates: dict[str, np.ndarray]  # Swept names, then "seed".

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the coordinates; their product is L."""
        return tuple(len(values) for values in self.coordinates.values())


def make_grid(config: Any) -> LaneGrid:
    """Lays out the lanes of a case.

    Args:
      config: the case's config, with `num_seeds`, `first_seed` and `sweep`.

    Returns:
      The grid of all combinations. Hyper-parameters that are off in every lane are left
      out, so that no code is compiled for them.

    Raises:
      ConfigError: no seeds, or one past 2**32 - 1; a sweep over something that is not a
        hyper-parameter, over a value twice, or over one out of range.
    """
    last_seed = config.first_seed + config.num_seeds - 1
    if config.num_seeds < 1 or config.first_seed < 0 or last_seed > _LAST_SEED:
        raise ConfigError(
            "config.num_seeds must be at least 1, config.first_seed not negative, and "
            f"no seed above {_LAST_SEED}; got {config.num_seeds} seeds from "
            f"{config.first_seed} to {last_seed}."
        )
    for name in config.sweep:
        if name not in HYPER_PARAMETERS:
            raise ConfigError(
                f"config.sweep cannot hold {name!r}: it changes the compiled program. "
                f"Make each value a case of config.cases. In one program sweep "
                f"{list(HYPER_PARAMETERS)}."
            )
    swept = {
        name: tuple(config.sweep[name])
        for name in HYPER_PARAMETERS
        if config.sweep.get(name)
    }
    names = [name for name in HYPER_PARAMETERS if name in config]
    for name in names:
        HYPER_PARAMETERS[name].range.check(name, config[name])
        _check_swept(name, swept.get(name, ()))
    num_lanes = config.num_seeds * math.prod(map(len, swept.values()))
    if num_lanes > _MOST_LANES:
        raise ConfigError(
            f"config.num_seeds ({config.num_seeds}) and config.sweep make {num_lanes} "
            f"lanes; a case can have {_MOST_LANES}."
        )
    seeds = range(config.first_seed, last_seed + 1)
    coordinates = {name: np.asarray(values, float) for name, values in swept.items()}
    coordinates["seed"] = np.asarray(seeds, np.uint32)
    points = list(itertools.product(*coordinates.values()))
    columns = dict(zip(coordinates, zip(*points, strict=True), strict=True))
    hyper_parameters = {
        name: np.asarray(columns.get(name, [config[name]] * len(points)), np.float32)
        for name in names
        if name in swept or config[name] != HYPER_PARAMETERS[name].off
    }
    lanes = Lane(np.asarray(columns["seed"], np.uint32), hyper_parameters)
    return LaneGrid(lanes, coordinates)


def _check_swept(name: str, values: Sequence[float]) -> None:
    """Raises ConfigError for values out of range, and for the same one twice."""
    for value in values:
        HYPER_PARAMETERS[name].range.check(f"sweep.{name}", value)
    if len(np.unique(np.asarray(values, np.float32))) < len(values):
        raise ConfigError(
            f"config.sweep.{name} holds a value twice, as lanes see it in float32: "
            f"{values}. Each value makes lanes of its own; leave the second out."
        )


def lane_settings(config: Any, lane: Lane) -> SimpleNamespace:
    """Returns the hyper-parameters of one lane: traced, or a number where off."""
    fixed = {name: config[name] for name in HYPER_PARAMETERS if name in config}
    return SimpleNamespace(**(fixed | lane.hyper_parameters))


def lane_key(lane: Lane) -> jax.Array:
    """Returns the key from which everything random in a lane derives."""
    return make_key(lane.seed)


class LaneMap:
    """Maps functions of one lane over all lanes, on all devices.

    Args:
      num_lanes: L.
      block: lanes that a device vmaps together, 0 for all that it has. The blocks of a
        device run one after the other.
      devices: the devices to spread the lanes over, None for all of all processes.
    """

    def __init__(self, num_lanes: int, block: int = 0, devices: Any = None):
        devices = jax.devices() if devices is None else devices
        self.num_lanes = num_lanes
        # Every process must hold lanes, if only those that fill up.
        is_alone = jax.process_count() == 1
        num_devices = min(len(devices), num_lanes) if is_alone else len(devices)
        self._per_device = math.ceil(num_lanes / num_devices)
        self._padded = self._per_device * num_devices
        self._block = min(block or self._per_device, self._per_device)
        self._mesh = Mesh(np.asarray(devices[:num_devices]), (_AXIS,))

    def put(self, tree: Any) -> Any:
        """Puts arrays [L, ...] on the devices; the last lane fills up the rest."""
        spare = self._padded - self.num_lanes

        def pad_and_put(leaf: Any) -> jax.Array:
            leaf = np.concatenate([leaf, np.repeat(leaf[-1:], spare, axis=0)])
            return _spread(leaf, NamedSharding(self._mesh, PartitionSpec(_AXIS)))

        return jax.tree.map(pad_and_put, tree)

    def replicate(self, tree: Any) -> Any:
        """Puts arrays without a lane axis on every device."""
        sharding = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: _spread(np.asarray(leaf), sharding), tree)

    def get(self, tree: Any) -> Any:
        """Fetches arrays [L, ...] as NumPy, without the lanes that filled up."""
        return jax.tree.map(
            lambda leaf: leaf[: self.num_lanes], distributed.gather(tree)
        )

    def jit(
        self, function: Callable[..., Any], *, num_shared: int = 0, donate: bool = False
    ) -> Callable[..., Any]:
        """Compiles a function of one lane for all lanes.

        Args:
          function: called with the lane's part of the leading arguments, and the shared
            ones whole.
          num_shared: how many of the last arguments all lanes share.
          donate: let the result take over the memory of the first argument.

        Returns:
          A jitted function of arguments with a leading lane axis.
        """

        def on_device(*arguments: Any) -> Any:
            split = len(arguments) - num_shared
            lanes, shared = arguments[:split], arguments[split:]

            def one(lane_arguments: tuple[Any, ...]) -> Any:
                return function(*lane_arguments, *shared)

            if self._block == self._per_device > 1:
                return jax.vmap(one)(lanes)
            return lax.map(
                one, lanes, batch_size=self._block if self._block > 1 else None
            )

        def spread(*arguments: Any) -> Any:
            split = len(arguments) - num_shared
            specs = (PartitionSpec(_AXIS),) * split + (PartitionSpec(),) * num_shared
            return jax.shard_map(
                on_device,
                mesh=self._mesh,
                in_specs=specs,
                out_specs=PartitionSpec(_AXIS),
                check_vma=False,
            )(*arguments)

        spread.__name__ = function.__name__  # What compilation logs and profiles show.
        return jax.jit(spread, donate_argnums=0 if donate else ())


def _spread(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds whole on the devices of all processes."""
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index]
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every floating entry of a pytree is finite, bool scalar."""
    leaves = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(leaves))

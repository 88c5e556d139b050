"""Runs all lanes in one program: sharded over devices, in blocks, and vmapped.

A lane is one learner; the lanes of a case form one flat axis. The devices split this
axis and never wait for each other. Each device vmaps all its lanes, or one block of
them after the other.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from experiments.run import distributed

_AXIS = "lanes"


class LaneMap:
    """Maps functions of one lane over all lanes, on all devices.

    Args:
      num_lanes: L.
      block: lanes that a device vmaps together, 0 for all of its lanes. The blocks of a
        device run one after the other.
      devices: the devices for the lanes; None for all devices of all processes.
    """

    def __init__(self, num_lanes: int, block: int = 0, devices: Any = None):
        devices = jax.devices() if devices is None else devices
        self.num_lanes = num_lanes
        # Every process must have lanes, even if they are only padding.
        is_alone = jax.process_count() == 1
        num_devices = min(len(devices), num_lanes) if is_alone else len(devices)
        self._per_device = math.ceil(num_lanes / num_devices)
        self._padded = self._per_device * num_devices
        self._block = min(block or self._per_device, self._per_device)
        self._mesh = Mesh(np.asarray(devices[:num_devices]), (_AXIS,))

    def put(self, tree: Any) -> Any:
        """Puts arrays [L, ...] on the devices, padded by copies of the last lane."""
        spare = self._padded - self.num_lanes

        def pad_and_put(leaf: Any) -> jax.Array:
            leaf = np.concatenate([leaf, np.repeat(leaf[-1:], spare, axis=0)])
            return _spread(leaf, NamedSharding(self._mesh, PartitionSpec(_AXIS)))

        return jax.tree.map(pad_and_put, tree)

    def replicate(self, tree: Any) -> Any:
        """Puts arrays without a lane axis on every device."""
        sharding = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: _spread(np.asarray(leaf), sharding), tree)

    def like_put(self, tree: Any) -> Any:
        """Returns the shapes that `put` would return, also for absent devices."""
        spec = PartitionSpec(_AXIS)
        return jax.tree.map(
            lambda leaf: self._shape((self._padded, *leaf.shape[1:]), leaf.dtype, spec),
            tree,
        )

    def like_replicated(self, tree: Any) -> Any:
        """Returns the shapes that `replicate` would return."""
        return jax.tree.map(
            lambda leaf: self._shape(leaf.shape, leaf.dtype, PartitionSpec()), tree
        )

    def _shape(
        self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec
    ) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self._mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def get(self, tree: Any) -> Any:
        """Fetches arrays [L, ...] as NumPy arrays, without the padding."""
        return jax.tree.map(
            lambda leaf: leaf[: self.num_lanes], distributed.gather(tree)
        )

    def jit(
        self, function: Callable[..., Any], *, num_shared: int = 0, donate: bool = False
    ) -> Callable[..., Any]:
        """Compiles a function of one lane for all lanes.

        Args:
          function: called with the lane's slice of the leading arguments, and with the
            whole shared arguments.
          num_shared: number of trailing arguments that all lanes share.
          donate: let the result reuse the memory of the first argument.

        Returns:
          A jitted function whose arguments have a leading lane axis.
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

        spread.__name__ = function.__name__  # For compilation logs and profiles.
        return jax.jit(spread, donate_argnums=0 if donate else ())


def _spread(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards an array that every process has over the devices of all processes."""
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

"""What the machine can do at most: memory bandwidth and products of matrices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

STREAM, PRODUCT = "machine: stream", "machine: product"
"""Names of the programs that measure the machine."""


class Machine:
    """Programs that keep all devices busy with one thing.

    `STREAM` adds one long vector to another, in place; `PRODUCT` multiplies two square
    matrices of float32, at the precision that JAX takes by default. Each device has
    its own.

    Args:
      stream_megabytes: size of each vector, per device; far more than its caches.
      matrix_size: rows of the matrices.
    """

    def __init__(self, stream_megabytes: int, matrix_size: int):
        devices = jax.devices()
        mesh = Mesh(np.asarray(devices), ("devices",))
        sharding = NamedSharding(mesh, PartitionSpec("devices"))
        numbers = stream_megabytes * 2**20 // 4
        # Read both vectors, write one.
        self.stream_bytes = 3 * 4 * numbers * len(devices)
        self.product_operations = 2 * matrix_size**3 * len(devices)

        def make(shape: tuple[int, ...]) -> jax.Array:
            fill = jax.jit(
                lambda: jnp.full((len(devices), *shape), 1e-3, jnp.float32),
                out_shardings=sharding,
            )
            return fill()

        self._total, self._term = make((numbers,)), make((numbers,))
        self._matrices = make((matrix_size, matrix_size))
        self._add = jax.jit(lambda total, term: total + term, donate_argnums=0)
        self._multiply = jax.jit(lambda matrices: matrices @ matrices)
        for compiles in self.programs().values():
            compiles()

    def programs(self) -> dict[str, Callable[[], None]]:
        """Returns the two programs by name, to be timed beside others."""
        return {STREAM: self._run_stream, PRODUCT: self._run_product}

    def _run_stream(self) -> None:
        self._total = jax.block_until_ready(self._add(self._total, self._term))

    def _run_product(self) -> None:
        jax.block_until_ready(self._multiply(self._matrices))

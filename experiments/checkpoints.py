"""Checkpoints of a run: all that it takes to go on as if nothing had happened."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_FOLDER = "checkpoints"


class CheckpointError(OSError):
    """A checkpoint cannot be written; the one before is still whole."""


class Checkpointer:
    """Keeps the last whole checkpoint of a run folder.

    Args:
      folder: the run folder.
    """

    def __init__(self, folder: pathlib.Path):
        self._manager = ocp.CheckpointManager(
            (folder / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False
            ),
        )

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Writes a checkpoint; the one before is deleted once this one is whole.

        Args:
          step: tasks done, over all cases; must grow.
          tree: nested dict of NumPy arrays.

        Raises:
          CheckpointError: it cannot be written, for example because the disk is full.
        """
        last = self._manager.latest_step()
        try:
            self._manager.save(step, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
        except Exception as error:
            kept = "There is none" if last is None else f"That of {last} tasks is whole"
            raise CheckpointError(
                f"Cannot write a checkpoint to {self._manager.directory}: {error}\n"
                f"{kept}. Make room there, and the same command goes on from it."
            ) from error

    def restore(self) -> dict[str, Any] | None:
        """Reads the last whole checkpoint; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        tree = self._manager.restore(step, args=ocp.args.StandardRestore())
        return jax.tree.map(np.asarray, tree)

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()


def to_dict(state: Any) -> dict[str, np.ndarray]:
    """Flattens a pytree of NumPy arrays into a dict."""
    return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(state))}


def from_dict(saved: dict[str, np.ndarray], like: Any) -> Any:
    """Undoes `to_dict` for a state of the structure of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten([saved[str(index)] for index in range(len(leaves))])


def keys_to_data(tree: Any) -> Any:
    """Turns typed PRNG keys into their bits, which every library can save."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def data_to_keys(tree: Any, like: Any) -> Any:
    """Undoes `keys_to_data` for a tree of the dtypes of `like`."""

    def restore(leaf: Any, like: Any) -> Any:
        return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf

    return jax.tree.map(restore, tree, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

"""The leaves of a params tree, found by path."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cbp_jax.resets.units import Paths, PyTree

# Flax wraps the params of a network in a collection of this name.
COLLECTION = "params/"


def path_string(path: Sequence[Any]) -> str:
    """Joins the keys of a pytree path by `/`: `dense_0/kernel`."""
    return "/".join(_key_string(key) for key in path)


def _key_string(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


class Leaves:
    """The leaves of a params tree, found by path, with or without its `params/`."""

    def __init__(self, params: PyTree):
        with_paths, _ = jax.tree_util.tree_flatten_with_path(params)
        self.names = [path_string(path) for path, _ in with_paths]
        self.shapes = [jnp.shape(leaf) for _, leaf in with_paths]

    def find(self, paths: Paths, group: str, field: str) -> list[int]:
        """Returns the index of the leaf of each path; ValueError if it has none."""
        if paths is None:
            return []
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        return [self._find_one(path, group, field) for path in paths]

    def _find_one(self, path: str, group: str, field: str) -> int:
        matches = self._matches(path)
        if not matches:
            matches = self._matches(COLLECTION + path)
        if not matches:
            matches = self._matches(path.removeprefix(COLLECTION))
        if len(matches) == 1:
            return matches[0]
        problem = "is not in the params" if not matches else "names several leaves"
        raise ValueError(
            f"Unit group {group!r}: {field} path {path!r} {problem}, whose leaves are "
            f"{self.names}. Give the path of one leaf, keys joined by '/'."
        )

    def _matches(self, path: str) -> list[int]:
        return [
            index
            for index, name in enumerate(self.names)
            if name == path or name.startswith(f"{path}/")
        ]

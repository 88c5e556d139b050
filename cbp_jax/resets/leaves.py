"""The leaves of a params tree, found by path."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cbp_jax.resets.units import Paths, PyTree

# Flax wraps the params of a network in a collection of this name.
COLLECTION = "params/"


def path_string(path: Sequence[Any]) -> str:
    """Joins the keys of a pytree path by `/`: `dense_0/kernel`."""
    return "/".join(key_string(key) for key in path)


def key_string(key: Any) -> str:
    """Returns one key of a pytree path as text."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


class LeafPath(NamedTuple):
    """Where a leaf is in a pytree."""

    name: str  # `norm/var`: what the leaf is called, for all that looks at names.
    keys: str  # `norm/var/value`: all keys, those of a wrapper around an array as well.

    @property
    def last_key(self) -> str:
        """The last key of the name: `var`."""
        return self.name.rpartition("/")[2]

    @property
    def layer(self) -> str:
        """All keys of the name but the last: `norm`."""
        return self.name.rpartition("/")[0]

    def is_under(self, path: str) -> bool:
        """Whether a path is that of the leaf, or of a subtree that it is in."""
        return self.keys == path or self.keys.startswith(f"{path}/")


def leaf_paths(tree: PyTree) -> list[LeafPath]:
    """Returns the path of each leaf.

    A variable of nnx, and a box of linen that keeps a sharding beside an array, hold it
    as their attribute `value`. Where nothing else is in it, that is no part of a name.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    keys = [tuple(key_string(key) for key in path) for path, _ in with_paths]
    paths = []
    for index, path in enumerate(keys):
        wrapper = path[:-1]
        neighbors = keys[max(index - 1, 0) : index] + keys[index + 1 : index + 2]
        is_alone = all(other[: len(wrapper)] != wrapper for other in neighbors)
        is_wrapped = path[-1:] == ("value",) and bool(wrapper) and is_alone
        name = wrapper if is_wrapped else path
        paths.append(LeafPath("/".join(name), "/".join(path)))
    return paths


class Leaves:
    """The leaves of a params tree, found by path, with or without its `params/`."""

    def __init__(self, params: PyTree):
        self.paths = leaf_paths(params)
        self.names = [path.name for path in self.paths]
        self.shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]

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
        return [index for index, leaf in enumerate(self.paths) if leaf.is_under(path)]

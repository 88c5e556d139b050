"""Running on explicit meshes, where every operation would have to name shardings."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType


def in_auto_mode(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Lets XLA choose the shardings inside a function of arrays.

    Args:
      function: of pytrees of arrays.
      like: pytree of arrays that have the structure and the shardings of its output.

    Returns:
      The function itself, where no mesh has explicit axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        return function
    shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, like)
    return jax.sharding.auto_axes(function, out_sharding=shardings)

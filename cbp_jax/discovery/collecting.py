"""Activations that a network's own code has put aside, as one flat dict."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cbp_jax.resets.leaves import path_string
from cbp_jax.resets.units import PyTree


def collect_features(
    captured: PyTree, paths: Mapping[str, str] | Sequence[str]
) -> dict[str, jax.Array]:
    """Picks features out of what flax has captured in a forward pass.

    * linen, `self.sow("intermediates", "hidden", nn.relu(...))` and
      `outputs, state = network.apply(variables, inputs, mutable=["intermediates"])`:
      pass `state["intermediates"]` and the paths of what was sown. It gives what you
      sow, so sow after the nonlinearity.
    * linen, `network.apply(..., capture_intermediates=True, mutable=...)`: the output
      of each submodule under its path. That of a `Dense` is from before the
      nonlinearity, so name a submodule that ends with one.
    * nnx, `outputs, captured = nnx.capture(model, nnx.Intermediate)(inputs)`, with
      `self.sow(nnx.Intermediate, "hidden", nnx.relu(...))` in the model, or with
      `method_outputs=nnx.Intermediate` for the outputs of all methods: likewise.

    `cbp_jax.with_features` needs nothing of this, and works for Equinox, Haiku and
    plain functions as well.

    Args:
      captured: any pytree of arrays with string paths.
      paths: for each group's name the path of its activations, keys joined by `/`; or
        the names alone, where the paths are equal to them.

    Returns:
      The activations by group's name, as `update` takes them.

    Raises:
      ValueError: nothing was captured under a path, or several arrays.
    """
    if not isinstance(paths, Mapping):
        paths = {name: name for name in paths}
    leaves, _ = jax.tree_util.tree_flatten_with_path(captured)
    arrays = {_without_wrapper(path): leaf for path, leaf in leaves}
    return {name: _find(arrays, path, name) for name, path in paths.items()}


def _find(arrays: Mapping[str, jax.Array], path: str, name: str) -> jax.Array:
    # A module's own output comes before those of the modules inside it.
    for prefix in (path, f"{path}/__call__"):
        inside = [key for key in arrays if key.startswith(f"{prefix}/")]
        own = [key for key in inside if _is_wrapping(key.removeprefix(f"{prefix}/"))]
        found = [prefix] if prefix in arrays else own
        if len(found) == 1:
            return arrays[found[0]]
        if found:
            raise ValueError(
                f"Feature {name!r}: several arrays were captured under {path!r}: "
                f"{found}. A module that is called several times gives several; name "
                "one of them, or sow under names of their own."
            )
    raise ValueError(
        f"Feature {name!r}: nothing was captured under {path!r}; there are "
        f"{list(arrays)}. Sow it there, or give the path of another one."
    )


def _without_wrapper(path: Sequence[Any]) -> str:
    """Returns a path without the attribute `value` of a variable of nnx.

    What a network has put aside under the name `value` keeps its name.
    """
    wrapper = jax.tree_util.GetAttrKey("value")
    return path_string([key for key in path if key != wrapper])


def _is_wrapping(rest: str) -> bool:
    """Whether keys only lead through the tuple around an array."""
    return all(key.isdigit() for key in rest.split("/"))

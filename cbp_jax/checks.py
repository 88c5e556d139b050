"""Checks of options, where these are known when a function is traced."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def is_known(value: Any, condition: Callable[[np.ndarray], Any]) -> bool:
    """Whether a value is known in advance and all of it fulfills a condition."""
    # Comparing a `jax.Array` under jit is traced, a NumPy array's is not.
    return not is_traced(value) and bool(np.all(condition(np.asarray(value))))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError if the value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


def check_range(
    name: str, value: Any, low: float, high: float, open_end: bool = False
) -> None:
    """Raises ValueError for a known number below `low`, or above or at the end."""

    def inside(value: np.ndarray) -> np.ndarray:
        return (value >= low) & ((value < high) if open_end else (value <= high))

    if not is_traced(value) and not is_known(value, inside):
        end = ")" if open_end else "]"
        raise ValueError(f"{name} must be in [{low}, {high}{end}, got {value}.")


def check_params(name: str, params: Any) -> None:
    """Raises ValueError if an optax update that needs the params got none."""
    if params is None:
        raise ValueError(
            f"{name} needs the params: call update(updates, state, params)."
        )


def check_numbers(
    name: str, value: Any, shape: tuple[int, ...], meaning: str, kind: Any = None
) -> None:
    """Raises ValueError for what is not an array of real numbers of this shape.

    Args:
      name: says in errors where the value comes from.
      value: anything that a user's function returned.
      shape: that it must have.
      meaning: of an array of this shape, in words.
      kind: of its dtype, such as `jnp.floating`; None for real numbers and bools.
    """
    expected = f"expected an array of shape {shape}, {meaning}"
    try:
        kind_found = jax.typeof(value)
    except TypeError:
        raise ValueError(f"{name} returned {value!r}; {expected}.") from None
    if kind_found.shape != shape:
        raise ValueError(
            f"{name} returned an array of shape {kind_found.shape}; {expected}."
        )
    kinds = (jnp.floating, jnp.integer, jnp.bool_) if kind is None else (kind,)
    if not any(jnp.issubdtype(kind_found.dtype, kind) for kind in kinds):
        wanted = "real" if kind is None else kind.__name__
        raise ValueError(
            f"{name} returned an array of dtype {kind_found.dtype}; {expected}, whose "
            f"dtype is {wanted}."
        )


def name_of(function: Callable[..., Any]) -> str:
    """Returns the name of a function for errors."""
    return getattr(function, "__qualname__", None) or repr(function)

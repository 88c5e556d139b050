"""Checks of options, where these are known when a function is traced."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
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


def is_known_zero(value: Any) -> bool:
    """Whether a number, schedule or None is known in advance to be the number 0."""
    if value is None or callable(value):
        return False
    return is_known(value, lambda value: value == 0)

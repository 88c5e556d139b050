"""Measures that are not taken everywhere, without NaN in a compiled program."""

import dataclasses
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
    """Numbers of which some may not have been measured; NumPy sees NaN in their place.

    On a device they hold no NaN of ours, so that `jax_debug_nans` stops a program only
    where something went wrong.
    """

    values: jax.Array  # Anything finite where nothing was measured.
    is_measured: jax.Array  # bool, broadcasts to the values.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the values as a new NumPy array, NaN where not measured."""
        del copy
        values = np.asarray(self.values)
        return np.where(self.is_measured, values, np.nan).astype(dtype or values.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns entries of the NumPy array."""
        return np.asarray(self)[index]

"""The old name of `cbp_jax.variants`."""

import warnings

from cbp_jax.variants import NATURE, PREPRINT, RELEASED_CONV, RELEASED_MLP

__all__ = ["NATURE", "PREPRINT", "RELEASED_CONV", "RELEASED_MLP"]

warnings.warn(
    "cbp_jax.recipes is now cbp_jax.variants.", DeprecationWarning, stacklevel=2
)

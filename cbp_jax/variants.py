"""The published variants of continual backprop, as keyword arguments.

Use `continual_backprop(base_optimizer, units, key=key, **variants.PREPRINT)`. Each
variant sets every argument in which they differ. Override any of them with
`**(variants.NATURE | {"replacement_rate": 1e-6})`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cbp_jax import utility

__all__ = ["NATURE", "PREPRINT", "RELEASED_CONV", "RELEASED_MLP"]


def _variant(**arguments: Any) -> Mapping[str, Any]:
    return MappingProxyType(arguments)


PREPRINT = _variant(
    utility_fn=utility.overall,
    bias_correction=True,
    budget="accumulate",
    count="eligible",
    max_per_step=None,
    replacement_rate=1e-6,
    decay_rate=0.99,
    maturity_threshold=100,
)
"""arXiv:2306.13812, with its settings for Online Permuted MNIST."""

NATURE = _variant(
    utility_fn=utility.contribution,
    bias_correction=False,
    budget="accumulate",
    count="eligible",
    max_per_step=1,
    replacement_rate=1e-5,
    decay_rate=0.99,
    maturity_threshold=1000,
)
"""Nature 632, 2024, Algorithm 1, with its settings for class-incremental CIFAR-100.

The paper replaces a unit once the budget exceeds 1, and this code once it reaches 1.
"""

RELEASED_MLP = _variant(
    utility_fn=utility.overall,
    bias_correction=True,
    budget="bernoulli",
    count="eligible",
    max_per_step=None,
    replacement_rate=1e-4,
    decay_rate=0.99,
    maturity_threshold=100,
)
"""The authors' code for fully connected networks, with its Slowly-Changing Regression
budget; its Online Permuted MNIST runs are `PREPRINT`.

If more than one unit is due in a step, that code drops the fraction; here it is drawn.
The config of the regression sets this maturity threshold under a name that the program
does not read, so its runs use the program's default of 10.
"""

RELEASED_CONV = _variant(
    utility_fn=utility.overall,
    bias_correction=True,
    budget="accumulate",
    count="all",
    max_per_step=None,
    replacement_rate=3e-4,
    decay_rate=0.99,
    maturity_threshold=100,
)
"""The authors' code for convolutions, with its settings for Continual ImageNet."""

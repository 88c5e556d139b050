"""How large the gradient of a unit is: what ReGraMa and CPR compare.

Shapes: N units.
"""

from collections.abc import Callable

import jax

from cbp_jax import utility
from cbp_jax._numbers import check_choice, over_replicas
from cbp_jax._resets import Measurements
from cbp_jax._types import AxisName

EPSILON = 1e-8
_NEEDS = {"weights": "incoming_gradient", "activations": "activation_gradient"}


def magnitudes(
    gradient: str, axis_name: AxisName | None
) -> tuple[Callable[[Measurements], jax.Array], tuple[str]]:
    """Returns a function that measures gradient magnitudes, and what its rule needs.

    Args:
      gradient: "weights" or "activations"; see `cbp_jax.regrama`.
      axis_name: see `continual_backprop`.

    Returns:
      A function of the measurements of a group, which returns the magnitudes of its
      units [N]; and the `needs` of its rule.
    """
    check_choice("gradient", gradient, _NEEDS)
    if gradient == "weights":
        # Averaged over replicas by whoever calls the update.
        return utility.gradient, (_NEEDS[gradient],)

    def of_activations(measurements: Measurements) -> jax.Array:
        return over_replicas(utility.activation_gradient(measurements), axis_name)

    return of_activations, (_NEEDS[gradient],)

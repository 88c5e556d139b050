"""The features that losses take."""

import jax

from cbp_jax._types import PyTree


def arrays_of_layers(function: str, features: PyTree) -> list[jax.Array]:
    """Returns the arrays of the features.

    Raises:
      ValueError: there are none.
    """
    layers = jax.tree.leaves(features)
    if not layers:
        raise ValueError(
            f"{function} got no features, but needs those of at least one hidden "
            "layer. Pass the activations that your network returns."
        )
    return layers

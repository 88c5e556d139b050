"""The random numbers of all experiments: their generator, and what they are for."""

import jax

PRNG_IMPL = "threefry2x32"
"""The generator of all random numbers.

`jax.vmap` lets it draw for each key what that key draws alone. JAX's other generators,
`rbg` and `unsafe_rbg`, draw for all keys by the first one, so that what a seed sees
would depend on the seeds beside it.
"""

# Purposes of the random numbers derived from a lane's key. They are the same for every
# method, so that two methods with one seed see the same data and initial weights.
INITIALIZATION, STREAM, REPLACEMENT, NOISE = range(4)


def make_key(seed: int | jax.Array) -> jax.Array:
    """Returns the typed key of a seed, an integer scalar that may be traced."""
    return jax.random.key(seed, impl=PRNG_IMPL)

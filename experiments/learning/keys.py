"""The random number generator of all experiments, and the purposes of its keys."""

import jax

PRNG_IMPL = "threefry2x32"
"""The generator of all random numbers.

Under `jax.vmap`, each of its keys draws the same numbers as alone. With JAX's other
generators, `rbg` and `unsafe_rbg`, all keys draw from the first one, so that the
results of a seed would depend on the other seeds.
"""

# Purposes of the keys derived from a lane's key. They are the same for all methods, so
# that two methods with the same seed see the same data and initial weights.
INITIALIZATION, STREAM, REPLACEMENT, NOISE = range(4)


def make_key(seed: int | jax.Array) -> jax.Array:
    """Returns the typed key of a seed, an integer scalar that may be traced."""
    return jax.random.key(seed, impl=PRNG_IMPL)

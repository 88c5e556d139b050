"""The keys of all experiments: of one generator, whatever JAX's default is."""

import jax

PRNG_IMPL = "threefry2x32"
"""The generator of all random numbers.

`jax.vmap` lets it draw for each key what that key draws alone. JAX's other generators,
`rbg` and `unsafe_rbg`, draw for all keys by the first one, so that what a seed sees
would depend on the seeds beside it.
"""


def make_key(seed: int | jax.Array) -> jax.Array:
    """Returns the typed key of a seed, an integer scalar that may be traced."""
    return jax.random.key(seed, impl=PRNG_IMPL)

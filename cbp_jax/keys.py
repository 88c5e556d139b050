"""Keys in states: as their bits, which every library can store, measure and map."""

import jax
import jax.numpy as jnp


def key_bits(key: jax.Array | None) -> jax.Array | None:
    """Returns the bits of a typed key, uint32 [...]; None for None.

    A copy, because the caller's key must survive a state whose memory is reused.
    """
    return None if key is None else jnp.copy(jax.random.key_data(key))


def key_of(bits: jax.Array | None, like: jax.Array | None) -> jax.Array | None:
    """Returns the typed key of some bits, of the same generator as another key."""
    if bits is None:
        return None
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like))

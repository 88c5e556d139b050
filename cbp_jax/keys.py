"""Keys in states: as their bits, which every library can store, measure and map."""

import jax
import jax.numpy as jnp


def key_bits(key: jax.Array | None) -> jax.Array | None:
    """Returns the bits of a key, typed or raw, uint32 [words]; None for None.

    A copy, because the caller's key must survive a state whose memory is reused.

    Raises:
      ValueError: it is no key, or several.
    """
    if key is None:
        return None
    try:
        bits = jax.random.key_data(key)
    except TypeError as error:
        raise ValueError(
            f"key must be a PRNG key, as jax.random.key(seed), got {key!r}."
        ) from error
    if bits.ndim != 1:
        raise ValueError(
            f"key must be a single PRNG key, got an array of keys {bits.shape[:-1]}: "
            "build the transformation inside the function that is vmapped over them."
        )
    return jnp.copy(bits)


def key_of(bits: jax.Array | None, like: jax.Array | None) -> jax.Array | None:
    """Returns the typed key of some bits, of the same generator as another key.

    Raises:
      ValueError: the bits are of another generator's key.
    """
    if bits is None:
        return None
    impl = jax.random.key_impl(like)
    try:
        return jax.random.wrap_key_data(bits, impl=impl)
    except TypeError as error:
        raise ValueError(
            f"The state holds a key of {bits.shape[-1]} words, which key, of the "
            f"generator {impl}, does not have: give a key of the generator that the "
            "state was made with, as jax.random.key(seed, impl=...)."
        ) from error

"""Updates of a dtype that can lead a param to a value.

An update may be of another dtype than its param: gradients of bfloat16 for params of
float32. A difference of params that is rounded to it misses what it should lead to.
"""

import jax
import jax.numpy as jnp

from cbp_jax.averages import at_least_float32


def widen(update: jax.Array, param: jax.Array) -> jax.Array:
    """Returns the update in a dtype that holds all numbers of its own and the param's.

    Where update and param are of one dtype, as usual, it is the update itself. The new
    param `param + update` is the same with both.
    """
    return update.astype(jnp.promote_types(update.dtype, param.dtype))


def lead_to(
    value: jax.Array, where: jax.Array, update: jax.Array, param: jax.Array
) -> jax.Array:
    """Makes an update lead its param to a value at some entries.

    `param + update` is the value up to rounding in the dtype of `widen`, at the size of
    the larger of the old param and the value; a value of 0 is exact.

    Args:
      value: what the param is to be, broadcasts to it.
      where: at which entries, bool, broadcasts to it.
      update: the update, which stays at all others.
      param: the param before the update.

    Returns:
      An update of the dtype of `widen`.
    """
    update = widen(update, param)
    dtype = at_least_float32(update.dtype)
    step = value.astype(dtype) - param.astype(dtype)
    return jnp.where(where, step.astype(update.dtype), update)

"""Numeric helpers of the transformations.

Checks of options, dtypes, running averages, keys as state arrays, and updates that set
a param to a value.

Shapes: N units.
"""

from collections.abc import Callable, Collection
from typing import overload

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
import numpy as np

from cbp_jax._types import AxisName, PyTree, Rate


def is_traced(value: object) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def is_known(value: ArrayLike, condition: Callable[[np.ndarray], ArrayLike]) -> bool:
    """Whether a value is known in advance and all its entries meet a condition."""
    # Under jit, comparing a `jax.Array` is traced; comparing a NumPy array is not.
    return not is_traced(value) and bool(np.all(condition(np.asarray(value))))


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError if the value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


def check_range(
    name: str, value: ArrayLike, low: float, high: float, open_end: bool = False
) -> None:
    """Raises ValueError if a known number is outside [low, high], or [low, high)."""

    def inside(value: np.ndarray) -> np.ndarray:
        return (value >= low) & ((value < high) if open_end else (value <= high))

    if not is_traced(value) and not is_known(value, inside):
        end = ")" if open_end else "]"
        raise ValueError(f"{name} must be in [{low}, {high}{end}, got {value}.")


def check_params(name: str, params: PyTree | None) -> None:
    """Raises ValueError if an optax update that needs the params got none."""
    if params is None:
        raise ValueError(
            f"{name} needs the params, but the update got none. Call "
            "update(updates, state, params)."
        )


def check_numbers(
    name: str,
    value: object,
    shape: tuple[int, ...],
    meaning: str,
    kind: type | None = None,
) -> None:
    """Raises ValueError if a value is not an array of real numbers of this shape.

    Args:
      name: name of the function that returned the value, for errors.
      value: anything that a user's function returned.
      shape: required shape.
      meaning: description of an array of this shape.
      kind: kind of its dtype, such as `jnp.floating`; None for real numbers and bools.
    """
    expected = f"expected an array of shape {shape}, {meaning}"
    try:
        kind_found = jax.typeof(value)
    except TypeError:
        raise ValueError(f"{name} returned {value!r}; {expected}.") from None
    if kind_found.shape != shape:
        raise ValueError(
            f"{name} returned an array of shape {kind_found.shape}; {expected}."
        )
    kinds = (jnp.floating, jnp.integer, jnp.bool_) if kind is None else (kind,)
    if not any(jnp.issubdtype(kind_found.dtype, kind) for kind in kinds):
        wanted = "real" if kind is None else kind.__name__
        raise ValueError(
            f"{name} returned an array of dtype {kind_found.dtype}; {expected}, of "
            f"{wanted} dtype."
        )


def name_of(function: Callable[..., object]) -> str:
    """Returns the name of a function for errors."""
    return getattr(function, "__qualname__", None) or repr(function)


def is_known_zero(value: Rate | None) -> bool:
    """Whether a number, schedule or None is known in advance to be the number 0."""
    if value is None or callable(value):
        return False
    return is_known(value, lambda value: value == 0)


def over_replicas(
    value: jax.Array,
    axis_name: AxisName | None,
    reduce: Callable[[jax.Array, AxisName], jax.Array] = lax.pmean,
) -> jax.Array:
    """Reduces a batch statistic over the axis that the batch is split over.

    Args:
      value: statistic of this replica's part of the batch, any shape.
      axis_name: name or names of axes of `jax.shard_map` or `jax.pmap`; None for none.
      reduce: `lax.pmean`, or `lax.pmax` for conditions that one replica can fulfill.
    """
    return value if axis_name is None else reduce(value, axis_name)


def running_average(
    average: jax.Array, value: jax.Array, decay_rate: float | jax.Array
) -> jax.Array:
    """Averages in a new value [N]; where it is not finite, keeps the old average."""
    decay_rate = jnp.asarray(decay_rate, average.dtype)
    new = decay_rate * average + (1 - decay_rate) * value
    return jnp.where(jnp.isfinite(value), new, average)


def average_weight(
    age: jax.Array, decay_rate: float | jax.Array, dtype: DTypeLike
) -> jax.Array:
    """Returns 1 - decay**age, the weight of a running average that started at 0.

    Args:
      age: steps averaged, integer array of any shape, at least 1.
      decay_rate: in [0, 1).
      dtype: floating dtype of the result.
    """
    # The logarithm of 0 would be infinite and trip `jax_debug_infs`.
    positive = jnp.maximum(jnp.asarray(decay_rate, dtype), jnp.finfo(dtype).tiny)
    log_decay = jnp.log(positive)
    return -jnp.expm1(age.astype(dtype) * log_decay)


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype for statistics of params with a floating dtype."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


@overload
def key_bits(key: jax.Array) -> jax.Array: ...
@overload
def key_bits(key: None) -> None: ...
def key_bits(key: jax.Array | None) -> jax.Array | None:
    """Returns the bits of a key, typed or raw, uint32 [words]; None for None.

    The result is a copy, because the state may be donated and the caller keeps the key.

    Raises:
      ValueError: the value is not a single key.
    """
    if key is None:
        return None
    try:
        bits = jax.random.key_data(key)
    except TypeError as error:
        raise ValueError(
            f"key must be a PRNG key, got {key!r}. Use jax.random.key(seed)."
        ) from error
    if bits.ndim != 1:
        raise ValueError(
            f"key must be a single PRNG key, got an array of keys {bits.shape[:-1]}. "
            "Build the transformation inside the function that is vmapped over them."
        )
    return jnp.copy(bits)


@overload
def key_of(bits: jax.Array, like: jax.Array | None) -> jax.Array: ...
@overload
def key_of(bits: None, like: jax.Array | None) -> None: ...
def key_of(bits: jax.Array | None, like: jax.Array | None) -> jax.Array | None:
    """Returns the typed key with the given bits, and the generator of another key.

    Raises:
      ValueError: the bits are from another generator.
    """
    if bits is None:
        return None
    impl = jax.random.key_impl(like)  # pyrefly: ignore[bad-argument-type]
    try:
        return jax.random.wrap_key_data(bits, impl=impl)
    except TypeError as error:
        raise ValueError(
            f"The state contains a key of {bits.shape[-1]} words, which does not fit "
            f"the generator {impl} of `key`. Pass a key of the generator that the "
            "state was initialized with: jax.random.key(seed, impl=...)."
        ) from error


def as_float(array: jax.Array) -> jax.Array:
    """Casts an array to the dtype of measures."""
    return jnp.asarray(array, float_dtype(array))


def float_dtype(*arrays: ArrayLike) -> jnp.dtype:
    """Returns float64 if any array has that dtype, and float32 otherwise."""
    is_double = any(jnp.result_type(array) == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def widen(update: jax.Array, param: jax.Array) -> jax.Array:
    """Casts the update to a dtype that covers its own and the param's.

    If both have the same dtype, as usual, this is the update itself. The new param
    `param + update` does not change.
    """
    return update.astype(jnp.promote_types(update.dtype, param.dtype))


def lead_to(
    value: jax.Array, where: jax.Array, update: jax.Array, param: jax.Array
) -> jax.Array:
    """Changes an update so that it sets some entries of its param to a value.

    `param + update` is the value up to rounding in the dtype of `widen`, relative to
    the larger of the old param and the value; a value of 0 is exact.

    Args:
      value: new value of the param; broadcasts to it.
      where: which entries to set, bool; broadcasts to the param.
      update: the update, which is kept at all other entries.
      param: the param before the update.

    Returns:
      An update in the dtype of `widen`.
    """
    update = widen(update, param)
    dtype = at_least_float32(update.dtype)
    step = value.astype(dtype) - param.astype(dtype)
    return jnp.where(where, step.astype(update.dtype), update)


def part_way(old: jax.Array, new: jax.Array, fraction: jax.Array) -> jax.Array:
    """Goes from old values toward new ones: (1 - fraction) old + fraction new.

    Args:
      old: any array.
      new: of its dtype; broadcasts to it.
      fraction: floating; broadcasts to it. 0 or less gives the old value and 1 or more
        the new one, both exactly. Integers have no values in between and stay old.

    Returns:
      An array in the dtype of at least float32 that covers the old one.
    """
    mixed = old
    if jnp.issubdtype(old.dtype, jnp.floating):
        dtype = at_least_float32(old.dtype)
        old, new, fraction = (array.astype(dtype) for array in (old, new, fraction))
        mixed = (1 - fraction) * old + fraction * new
    return jnp.where(fraction >= 1, new, jnp.where(fraction > 0, mixed, old))

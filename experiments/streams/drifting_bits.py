"""The stream of Slowly-Changing Regression: random bits, some of which drift slowly.

An example is one word. From the lowest bit, it has `slow_bits` that change only every
`drift_every` examples, F fast bits that are redrawn for every example, and a constant
1.

Shapes: T examples of a bin, M bits of an input, D drift periods that a bin may overlap.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from experiments.learning.checks import check_choice, check_positive
from experiments.learning.stream_problem import Deferred
from experiments.streams.linear_threshold import draw_network, network_outputs

WORD_BITS = 32
_MAX_FAST_BITS = 10


class Examples(NamedTuple):
    """The examples of a bin, in the order in which they are presented."""

    words: jax.Array  # uint32 [T]
    targets: jax.Array  # float32 [T]


def make_stream(config: Any) -> Callable[[jax.Array, jax.Array, Any], Deferred]:
    """Returns the stream of a config.

    Returns:
      `(key, task, data) -> Deferred`. Its inputs are the bits without the constant one,
      float32 `[T, M - 1]`; its targets are float32 `[T]`.

    Raises:
      ValueError: a field is invalid.
    """
    check_stream(config)

    def read(examples: Examples) -> tuple[jax.Array, jax.Array]:
        return unpack(examples.words, config.num_bits - 1), examples.targets

    def sample(key: jax.Array, task: jax.Array, data: Any) -> Deferred:
        del data
        return Deferred(draw_task(config, key, task), read)

    return sample


def check_stream(config: Any) -> None:
    """Raises ValueError for invalid fields of the stream."""
    check_choice("drift", config.drift, DRIFTS)
    check_positive(config, "drift_every", "target_units", "slow_bits")
    num_bits, slow_bits = config.num_bits, config.slow_bits
    if num_bits > WORD_BITS:
        raise ValueError(
            f"config.num_bits must be at most {WORD_BITS}, got {num_bits}."
        )
    if slow_bits >= num_bits:
        raise ValueError(
            f"config.slow_bits must be below config.num_bits ({num_bits}), whose last "
            f"bit is constant; got {slow_bits}."
        )
    if num_bits - 1 - slow_bits > _MAX_FAST_BITS:
        raise ValueError(
            f"config.num_bits ({num_bits}) and config.slow_bits ({slow_bits}) leave "
            f"{num_bits - 1 - slow_bits} bits that change with every example, but the "
            f"table of targets allows at most {_MAX_FAST_BITS}: lower config.num_bits "
            "or raise config.slow_bits."
        )


def draw_task(config: Any, key: jax.Array, task: jax.Array) -> Examples:
    """Draws the examples of a bin of a lane.

    Args:
      config: a config with the fields of the stream and `examples_per_task`.
      key: key of the lane's stream, the same for every method and bin.
      task: number of the bin, int32 scalar.

    Returns:
      The examples, which are the same for all lanes of a seed.
    """
    target_key, slow_key, fast_key = jax.random.split(key, 3)
    network = draw_network(
        target_key, config.num_bits, config.target_units, config.target_beta
    )
    number = config.examples_per_task
    periods = (task * number + jnp.arange(number)) // config.drift_every
    touched = periods[0] + jnp.arange((number - 1) // config.drift_every + 2)
    drift = DRIFTS[config.drift]
    slow = jax.vmap(lambda period: drift(slow_key, period, config.slow_bits))(touched)

    # A drift period has only 2**F distinct examples, so the target is tabulated: [D,
    # 2**F]. Evaluating it for each example would take longer than the updates.
    num_fast = config.num_bits - 1 - config.slow_bits

    def to_words(slow: jax.Array, fast: jax.Array) -> jax.Array:
        constant = jnp.uint32(1 << (config.num_bits - 1))
        return slow | fast << config.slow_bits | constant

    all_words = to_words(
        slow[:, None], jnp.arange(1 << num_fast, dtype=jnp.uint32)[None]
    )
    table = network_outputs(network, unpack(all_words, config.num_bits))
    fast = _draw_small(jax.random.fold_in(fast_key, task), number, num_fast)
    row = periods - periods[0]
    return Examples(words=to_words(slow[row], fast), targets=table[row, fast])


def unpack(words: jax.Array, num_bits: int) -> jax.Array:
    """Turns words uint32 `[...]` into their M lowest bits, float32 `[..., M]`."""
    places = jnp.arange(num_bits, dtype=jnp.uint32)[(None,) * words.ndim]
    bits = words[..., None] >> places & 1
    return bits.astype(jnp.float32)


def _flip_one(key: jax.Array, period: jax.Array, slow_bits: int) -> jax.Array:
    """Returns slow bits, uint32; a uniformly chosen one flips at each new period."""

    def flip(number: jax.Array, word: jax.Array) -> jax.Array:
        chosen = _draw_word(jax.random.fold_in(key, number)) % slow_bits
        return word ^ (jnp.uint32(1) << chosen)

    first = _redraw_all(key, jnp.zeros_like(period), slow_bits)
    return lax.fori_loop(1, period + 1, flip, first)


def _redraw_all(key: jax.Array, period: jax.Array, slow_bits: int) -> jax.Array:
    """Returns slow bits, uint32; all are redrawn at each new period."""
    return _draw_word(jax.random.fold_in(key, period)) >> (WORD_BITS - slow_bits)


DRIFTS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {"one": _flip_one, "all": _redraw_all}
)


def _draw_word(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws words of `WORD_BITS` random bits, even if JAX computes in 64 bits."""
    return jax.random.bits(key, shape, jnp.uint32)


def _draw_small(key: jax.Array, number: int, num_bits: int) -> jax.Array:
    """Draws integers of `num_bits` bits, uint32 [number], several from each word."""
    per_word = WORD_BITS // max(num_bits, 1)
    random = _draw_word(key, (-(-number // per_word), 1))
    shifts = num_bits * jnp.arange(per_word, dtype=jnp.uint32)[None]
    return (random >> shifts & ((1 << num_bits) - 1)).reshape(-1)[:number]

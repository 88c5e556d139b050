"""Which optimizers can be the base, and what is wrong with the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest
import tiny

import cbp_jax

UNITS = cbp_jax.sequential_units(("dense_0", "head"), bias=None)
SHAPES = {"dense_0": (3, 4), "head": (4, 2)}
PARAMS = {
    name: {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=shape), "float32")
    }
    for name, shape in SHAPES.items()
}
FEATURES = {"dense_0": jnp.ones((2, 4))}


def make(base, units=UNITS, **options):
    options = {
        "replacement_rate": 0.5,
        "maturity_threshold": 4,
        "initializer": tiny.rows_initializer,
        "key": tiny.FAST_KEY,
    } | options
    return cbp_jax.continual_backprop(base, units, **options)


def message_of(base, **options):
    with pytest.raises(ValueError) as caught:
        make(base, **options).init(PARAMS)
    return str(caught.value)


def every_other_call():
    """Accumulates two gradients; optax knows nothing of it."""

    def init(params):
        return jnp.zeros((), bool), jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        del params
        is_second, held = state
        summed = jax.tree.map(jnp.add, updates, held)
        updates, held = (
            jax.tree.map(lambda leaf, keep=keep: jnp.where(keep, leaf, 0), summed)
            for keep in (is_second, ~is_second)
        )
        return updates, (~is_second, held)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (optax.MultiSteps(optax.sgd(0.1), 2), ("MultiSteps", "every mini-batch")),
        (
            optax.chain(optax.sgd(0.1), optax.apply_every(4)),
            ("optax.apply_every", "optax.MultiSteps(continual_backprop("),
        ),
        (
            optax.partition(
                {"a": optax.sgd(0.1), "b": optax.apply_every(4)},
                {"dense_0": "a", "head": "b"},
            ),
            ("optax.apply_every",),
        ),
        (
            optax.conditionally_mask(optax.adam(0.1), lambda step: step % 2 == 0),
            ("optax.conditionally_mask(continual_backprop(",),
        ),
        (contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), ("sam", "opaque_mode=True")),
        (every_other_call(), ("of 100 updates in a trial 50 were not 0", "MultiSteps")),
        (
            optax.sgd(lambda count: jnp.where(count % 4 == 3, 0.1, 0.0)),
            ("of 100 updates in a trial 25 were not 0",),
        ),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_a_base_that_moves_the_params_now_and_then_is_refused(base, parts, moments):
    message = message_of(base, moments=moments)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("where", ["jit", "vmap", "eval_shape"])
def test_it_is_refused_wherever_the_state_is_initialized(where):
    """Its step size may be traced."""

    def init(step_size):
        return make(optax.chain(every_other_call(), optax.sgd(step_size))).init(PARAMS)

    calls = {
        "jit": lambda: jax.jit(init)(0.1),
        "vmap": lambda: jax.vmap(init)(jnp.ones(2)),
        "eval_shape": lambda: jax.eval_shape(init, 0.1),
    }
    with pytest.raises(ValueError, match="only now and then"):
        calls[where]()


@pytest.mark.parametrize(
    "base",
    [
        optax.sgd(optax.linear_schedule(0.0, 0.1, 10)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)),
        # A triangle that begins anew every eight updates.
        optax.sgd(lambda count: 0.1 * jnp.abs(count % 8 - 4)),
        optax.set_to_zero(),
        optax.apply_if_finite(optax.adam(0.1), 2),
        optax.conditionally_transform(optax.scale(0.5), lambda step: step % 2 == 0),
        contrib.adopt(0.1),
        optax.polyak_sgd(),
    ],
    ids=lambda value: None,
)
def test_schedules_and_conditions_on_gradients_are_not(base):
    make(base).init(PARAMS)


LEARNING_RATE = 0.01
SECOND = {
    "mechanize": lambda rate: contrib.mechanize(optax.adam(rate)),
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=jax.random.key(0)),
    "simplified_ademamix": lambda rate: contrib.simplified_ademamix(rate, alpha=0.0),
    "adopt_without_clipping": lambda rate: contrib.adopt(rate, use_clipping=False),
    "centered_rmsprop": lambda rate: optax.rmsprop(rate, centered=True),
}

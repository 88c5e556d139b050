"""A decoder with continual backprop: layers stacked by `nn.scan`, attention heads.

    python -m experiments.examples.transformer [--steps=2000] [--seeds=2]

Each token is determined by the previous two, through a table that is redrawn for each
of eight tasks. The example has kernels [L, D, F] of stacked layers, each of which ages
and replaces its own units; attention values [L, D, H, K], whose units have two axes;
activations from a `scan`; and AdamW with a step count per unit.

It shows that the stated number of units is replaced in every layer, and that the last
task is still learned. It does not show a loss of plasticity, or a remedy for it: eight
tasks, two seeds and untuned hyperparameters say nothing about either.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

import cbp_jax
from cbp_jax import UnitGroup
from experiments.examples import side_by_side

TASKS, VOCABULARY, LENGTH, BATCH = 8, 8, 16, 16
LAYERS, WIDTH, HEADS, MLP_WIDTH = 2, 32, 2, 64


class Block(nn.Module):
    """Attention and MLP; returns the stream and the activations of its units."""

    @nn.compact
    def __call__(self, x, _):  # noqa: D102
        def heads(name):
            return nn.DenseGeneral((HEADS, WIDTH // HEADS), name=name)(normed)

        normed = nn.LayerNorm()(x)
        scores = jnp.einsum("bqhk,bshk->bhqs", heads("query"), heads("key"))
        scores = scores * (HEADS / WIDTH) ** 0.5
        is_past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = nn.softmax(jnp.where(is_past, scores, -jnp.inf))
        mixed = jnp.einsum("bhqs,bshk->bqhk", weights, heads("value"))
        x += nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(mixed)
        hidden = nn.gelu(nn.Dense(MLP_WIDTH, name="up")(nn.LayerNorm()(x)))
        x += nn.Dense(WIDTH, name="down")(hidden)
        return x, {"value": mixed, "mlp": hidden}  # Inputs of "out" and "down".


class Decoder(nn.Module):
    """Maps tokens [B, T] to logits [B, T, V] and activations [L, B, T, ...]."""

    @nn.compact
    def __call__(self, tokens):  # noqa: D102
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x += self.param("position", nn.initializers.normal(), (LENGTH, WIDTH))
        axes, rngs = {"params": 0}, {"params": True}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=LAYERS)
        x, features = blocks(name="block")(x, None)
        return nn.Dense(VOCABULARY, name="head")(nn.LayerNorm()(x)), features


MLP = UnitGroup("mlp", "block/up/kernel", "block/up/bias", "block/down/kernel")
VALUE = UnitGroup("value", "block/value/kernel", "block/value/bias", "block/out/kernel")
UNITS = MLP._replace(stack_axes=1), VALUE._replace(stack_axes=1, unit_axes=2)


def draw_tokens(table, key):
    """Draws sequences [B, T + 1] that follow a table [V, V]."""

    def follow(pair, _):
        return (pair[1], table[pair]), table[pair]

    first = jax.random.randint(key, (2, BATCH), 0, VOCABULARY)
    _, rest = jax.lax.scan(follow, tuple(first), length=LENGTH - 1)
    return jnp.vstack([first, rest]).T


def loss_fn(params, tokens):
    """Returns the mean cross-entropy of predictable tokens, and the features."""
    logits, features = Decoder().apply({"params": params}, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses[:, 1:].mean(), features


@functools.partial(jax.jit, static_argnames=("steps", "hyperparameters"))
def train(keys, *, steps, hyperparameters):
    """See `side_by_side.Train`; the score is the loss on unseen sequences."""
    steps = side_by_side.whole_tasks(steps, TASKS)

    def train_one(key):
        init_key, reset_key, key = jax.random.split(key, 3)
        tx = cbp_jax.optimizers.adamw_with_unit_counts(2e-3, UNITS, weight_decay=0.01)
        if hyperparameters:
            fresh = nn.initializers.lecun_normal()  # The default of flax.
            tx = cbp_jax.continual_backprop(
                tx, UNITS, initializer=fresh, key=reset_key, **hyperparameters
            )

        def step(carry, index):
            params, state = carry
            task_key = jax.random.fold_in(key, index * TASKS // steps)
            table = jax.random.randint(task_key, (VOCABULARY,) * 2, 0, VOCABULARY)
            tokens = draw_tokens(table, jax.random.fold_in(key, ~index))
            value_and_grads = jax.value_and_grad(loss_fn, has_aux=True)(params, tokens)
            (loss, features), grads = value_and_grads
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), loss

        params = Decoder().init(init_key, jnp.zeros((1, LENGTH), int))["params"]
        start = params, tx.init(params)
        (_, state), losses = jax.lax.scan(step, start, jnp.arange(steps))
        return side_by_side.outcome(losses, TASKS, state)

    return jax.vmap(train_one)(keys)


if __name__ == "__main__":
    side_by_side.run(train, "loss", steps=2000, seeds=2, rate=1e-4, maturity=200)

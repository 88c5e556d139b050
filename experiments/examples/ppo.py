"""PPO with continual backprop: an actor and a critic, with seeds under `vmap`.

    python -m experiments.examples.ppo [--steps=4096] [--seeds=4]

The agent pushes points to the origin of a plane against a wind that it does not observe
and that changes in each of eight tasks. The example has two chains of units in one
tree, orthogonal initializers, an `optax.chain` with a clipped Adam as the base
optimizer, and `num_replaced` from a `scan` under `vmap`.

It shows that units are replaced at the stated rate in every seed while the agent keeps
learning, but not whether this helps: plasticity is lost over millions of updates.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

import cbp_jax
from experiments.examples import side_by_side

TASKS, ENVIRONMENTS, HORIZON, UPDATES, MINIBATCH = 8, 32, 32, 16, 8
DISCOUNT, TRACE_DECAY, CLIP = 0.95, 0.95, 0.2
PUSHES = jnp.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]) * 0.05
minus_log_prob = optax.softmax_cross_entropy_with_integer_labels
orthogonal = nn.initializers.orthogonal(2**0.5)
hidden = functools.partial(nn.Dense, 64, kernel_init=orthogonal)
head = functools.partial(nn.Dense, kernel_init=nn.initializers.orthogonal(0.01))
NETS = {
    name: nn.Sequential([hidden(), nn.tanh, hidden(), nn.tanh, head(width)])
    for name, width in (("actor", len(PUSHES)), ("critic", 1))
}
CHAINS = [[f"{name}/layers_{index}" for index in (0, 2, 4)] for name in NETS]
UNITS = sum(map(cbp_jax.sequential_units, CHAINS), ())
forward = cbp_jax.with_features(
    lambda params, x: [NETS[name].apply({"params": params[name]}, x) for name in NETS],
    UNITS,
)


def play(params, wind, keys):
    """Plays an episode; returns a batch for `loss_fn`, [B, T], and the mean reward."""

    def act(states, key):
        (logits, values), _ = forward(params, states)
        actions = jax.random.categorical(key, logits)
        position, velocity = jnp.split(states, 2, axis=-1)
        velocity = 0.8 * velocity + PUSHES[actions] + wind
        position = jnp.clip(position + velocity, -1, 1)
        rewards = -jnp.linalg.norm(position, axis=-1)
        sample = states, actions, minus_log_prob(logits, actions), values[:, 0], rewards
        return jnp.hstack([position, velocity]), sample

    start = jax.random.uniform(keys[0], (ENVIRONMENTS, 4), minval=-1).at[:, 2:].set(0)
    last, samples = jax.lax.scan(act, start, keys[1:])
    *samples, values, rewards = samples  # Each [T, B].
    next_values = jnp.vstack([values[1:], forward(params, last)[0][1].T])
    errors = rewards + DISCOUNT * next_values - values
    gaps = jnp.arange(HORIZON) - jnp.arange(HORIZON)[:, None]
    advantages = jnp.triu((DISCOUNT * TRACE_DECAY) ** gaps) @ errors
    samples += [advantages + values, advantages]
    return [leaf.swapaxes(0, 1) for leaf in samples], rewards.mean()


def loss_fn(params, batch):
    """Returns PPO's loss for a minibatch with leaves [M, T], and the features."""
    states, actions, old_surprise, returns, advantages = batch
    (logits, values), features = forward(params, states)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratios = jnp.exp(old_surprise - minus_log_prob(logits, actions))
    clipped = jnp.clip(ratios, 1 - CLIP, 1 + CLIP)
    gain = jnp.minimum(ratios * advantages, clipped * advantages).mean()
    return jnp.square(values[..., 0] - returns).mean() - gain, features


@functools.partial(jax.jit, static_argnames=("steps", "hyperparameters"))
def train(keys, *, steps, hyperparameters):
    """See `side_by_side.Train`; the score is the mean reward per step."""
    episodes = side_by_side.whole_tasks(steps, TASKS, UPDATES)

    def train_one(params, reset_key, key):
        adam = cbp_jax.optimizers.adam_with_unit_counts(1e-3, UNITS, eps=1e-5)
        tx = optax.chain(optax.clip_by_global_norm(0.5), adam)
        if hyperparameters:
            tx = cbp_jax.continual_backprop(
                tx, UNITS, initializer=orthogonal, key=reset_key, **hyperparameters
            )

        def update(carry, batch):
            params, state = carry
            grads, features = jax.grad(loss_fn, has_aux=True)(params, batch)
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), None

        def learn(carry, episode):
            task_key = jax.random.fold_in(key, episode * TASKS // episodes)
            wind = 0.02 * jax.random.uniform(task_key, (2,), minval=-1)
            keys = jax.random.split(jax.random.fold_in(key, ~episode), HORIZON + 2)
            samples, reward = play(carry[0], wind, keys[1:])
            drawn = jax.random.choice(keys[0], ENVIRONMENTS, (UPDATES, MINIBATCH))
            batches = [leaf[drawn] for leaf in samples]
            return jax.lax.scan(update, carry, batches)[0], reward

        start = params, tx.init(params)
        (_, state), rewards = jax.lax.scan(learn, start, jnp.arange(episodes))
        return side_by_side.outcome(rewards, TASKS, state)

    def init(key):
        return {name: NETS[name].init(key, jnp.ones(4))["params"] for name in NETS}

    first, *rest = jax.vmap(jax.random.split, (0, None), 1)(keys, 3)
    # Not under vmap, where the QR decompositions of orthogonal weights can hang.
    return jax.vmap(train_one)(jax.lax.map(init, first), *rest)


if __name__ == "__main__":
    side_by_side.run(train, "reward", steps=4096, seeds=4, rate=1e-4, maturity=500)

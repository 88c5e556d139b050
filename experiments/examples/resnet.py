"""A residual network with batch normalization and continual backprop.

    python -m experiments.examples.resnet [--steps=480] [--seeds=2]

The digits of scikit-learn get new labels in each of four tasks. The example has groups
found by `infer_units`, some with several incoming and outgoing kernels, as at the end
of a block; batch statistics, reset with their channels; and `with_features`.

It shows that the stated number of channels is replaced in each group and that the last
task is still learned, but not whether this helps: so few updates cost no plasticity.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import cbp_jax
from experiments.examples import side_by_side

TASKS, BATCH = 4, 32
IMAGES = jnp.asarray(load_digits().images[..., None] / 16, jnp.float32)  # [., 8, 8, 1]
DIGITS = jnp.asarray(load_digits().target)


class ResNet(nn.Module):
    """Maps images [B, 8, 8, 1] to logits [B, 10]."""

    @nn.compact
    def __call__(self, x, train=True):  # noqa: D102
        def conv(x, channels, size, stride, name):
            x = nn.Conv(channels, (size, size), stride, use_bias=False, name=name)(x)
            return nn.BatchNorm(not train, momentum=0.9, name=f"norm_{name}")(x)

        x = nn.relu(conv(x, 8, 3, 1, "stem"))
        for block, (channels, stride) in enumerate(((8, 1), (16, 2))):
            y = nn.relu(conv(x, channels, 3, stride, f"first_{block}"))
            y = conv(y, channels, 3, 1, f"second_{block}")
            if x.shape != y.shape:
                x = conv(x, channels, 1, stride, f"shortcut_{block}")
            x = nn.relu(x + y)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


def find_units():
    """Finds the groups by tracing, and adds the statistics of their channels."""
    shapes = jax.eval_shape(ResNet().init, jax.random.key(0), IMAGES[:8])
    statistics = jax.tree.map(jnp.ones_like, shapes)
    params = statistics.pop("params")

    def apply(params, images):
        return ResNet().apply({"params": params, **statistics}, images, False)

    def with_statistics(group):
        norms = [leaf.split("/")[0] for leaf in jax.tree.leaves(group.norm_scale)]
        return group._replace(statistics=[f"batch_stats/{norm}" for norm in norms])

    return tuple(map(with_statistics, cbp_jax.infer_units(apply, params, IMAGES[:8])))


UNITS = find_units()
forward = cbp_jax.with_features(
    lambda params, inputs: ResNet().apply(
        {"params": params, **inputs[1]}, inputs[0], mutable=["batch_stats"]
    ),
    UNITS,
)


def loss_fn(params, statistics, images, labels):
    """Returns the loss; and new statistics, features and accuracy."""
    (logits, statistics), features = forward(params, (images, statistics))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (statistics, features, (logits.argmax(-1) == labels).mean())


@functools.partial(jax.jit, static_argnames=("steps", "hyperparameters"))
def train(keys, *, steps, hyperparameters):
    """See `side_by_side.Train`; the score is the accuracy on each batch."""
    steps = side_by_side.whole_tasks(steps, TASKS)

    def train_one(key):
        start_key, reset_key, key = jax.random.split(key, 3)
        tx = cbp_jax.optimizers.adam_with_unit_counts(3e-3, UNITS)
        if hyperparameters:
            fresh = nn.initializers.lecun_normal()  # The default of flax.
            tx = cbp_jax.continual_backprop(
                tx, UNITS, initializer=fresh, key=reset_key, **hyperparameters
            )

        def step(carry, index):
            params, statistics, state = carry
            task_key = jax.random.fold_in(key, index * TASKS // steps)
            batch_key = jax.random.fold_in(key, ~index)
            drawn = jax.random.randint(batch_key, (BATCH,), 0, len(IMAGES))
            labels = jax.random.permutation(task_key, 10)[DIGITS[drawn]]
            grads, (statistics, features, accuracy) = jax.grad(loss_fn, has_aux=True)(
                params, statistics, IMAGES[drawn], labels
            )
            updates, state = tx.update(grads, state, params, features=features)
            params = optax.apply_updates(params, updates)
            if hyperparameters:
                statistics = cbp_jax.reset_statistics(statistics, UNITS, state.replaced)
            return (params, statistics, state), accuracy

        statistics = ResNet().init(start_key, IMAGES[:1])
        params = statistics.pop("params")
        start = params, statistics, tx.init(params)
        (*_, state), accuracies = jax.lax.scan(step, start, jnp.arange(steps))
        return side_by_side.outcome(accuracies, TASKS, state)

    return jax.lax.map(train_one, keys)  # Convolutions are slower under vmap.


if __name__ == "__main__":
    side_by_side.run(train, "accuracy", steps=480, seeds=2, rate=1e-3, maturity=100)

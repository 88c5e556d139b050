"""A tiny network without a forward pass: params, gradients and features at random.

Shapes: T steps, B batch, N units of a group, K replaced at most in one step.
"""

import chex
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
import jax.numpy as jnp
import numpy as np
import optax

import cbp_jax

UNITS = cbp_jax.sequential_units(("dense_0", "dense_1", "head"))
SHAPES = {"dense_0": (4, 6), "dense_1": (6, 5), "head": (5, 3)}
WIDTHS = {"dense_0": 6, "dense_1": 5}
KEY = jax.random.key(0)
# For tests in which random numbers do not matter: this generator compiles faster.
FAST_KEY = jax.random.key(0, impl="unsafe_rbg")


def make_params(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), dtype),
            "bias": jnp.asarray(rng.normal(size=shape[1]), dtype),
        }
        for name, shape in SHAPES.items()
    }


def make_conv_params():
    """Returns params of a convolution of 3 units, a normalization and a head."""
    params = make_params()
    return {
        "conv": {
            "kernel": params["dense_0"]["kernel"].reshape(2, 2, 2, 3),
            "bias": jnp.arange(3.0),
        },
        "norm": {"scale": jnp.full(3, 2.0)},
        "head": params["head"],
    }


def make_features(num_steps=1, batch=2, seed=1):
    """Returns features [T, B, N] by group name."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(num_steps, batch, width)), np.float32)
        for name, width in WIDTHS.items()
    }


def make_grads(num_steps, params, seed=2):
    """Returns gradients like the params, each with a leading axis T."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=(num_steps, *leaf.shape)), leaf.dtype),
        params,
    )


def run(tx, params, grads, features):
    """Takes T steps and returns params and state after each, along a leading axis."""

    def step(carry, batch):
        params, state = carry
        grads, features = batch
        updates, state = tx.update(grads, state, params, features=features)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    return jax.lax.scan(step, (params, tx.init(params)), (grads, features))[1]


def loop(tx, params, grads, features):
    """`run` as a list of (params, state); a single step compiles faster than a scan."""

    @jax.jit
    def step(params, state, grads, features):
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for index in range(len(jax.tree.leaves(grads)[0])):
        params, state = step(params, state, at(grads, index), at(features, index))
        history.append((params, state))
    return history


def rows_initializer(key, shape, dtype):
    """Weight i of every unit is (i + 1) / 10; compiles faster than random numbers."""
    del key
    weights = (jnp.arange(shape[-2], dtype=dtype) + 1) / 10
    return jnp.broadcast_to(weights[:, None], shape)


def still_step(tx):
    """Returns a jitted `(params, state, features) -> (params, state)` with gradient 0.

    Features come without the axis T.
    """

    @jax.jit
    def step(params, state, features):
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(grads, state, params, features=features)
        return optax.apply_updates(params, updates), state

    return step


def _plain(rate, decay, maturity):
    return cbp_jax.continual_backprop(
        optax.sgd(0.0),
        UNITS,
        replacement_rate=rate,
        decay_rate=decay,
        maturity_threshold=maturity,
        initializer=rows_initializer,
        key=FAST_KEY,
        max_per_step=6,
    )


def newborn(params):
    """Returns the state before the first `step`."""
    return _plain(0.0, 0.9, 0.0).init(params)


def step(params, state, features, *, rate, decay=0.9, maturity=0.0):
    """Returns params and state after one step of gradient 0; compiled once for all."""
    return jax.device_get(traced_step(params, state, features, rate, decay, maturity))


@jax.jit
def traced_step(params, state, features, rate, decay, maturity):
    """`step` that can be vmapped."""
    tx = _plain(rate, decay, maturity)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(grads, state, params, features=features)
    return optax.apply_updates(params, updates), state


def with_units(state, name, **fields):
    """Replaces fields of one group's `UnitState`."""
    old = state.units[name]
    new = {
        field: jnp.asarray(value, getattr(old, field).dtype)
        for field, value in fields.items()
    }
    return state._replace(units={**state.units, name: old._replace(**new)})


def at(tree, index):
    """Takes one entry of every leaf's leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def mask_of(replaced, width):
    """Turns indices [K], N where unused, into a mask [N]."""
    mask = np.zeros(width + 1, bool)
    mask[np.asarray(replaced, int)] = True
    return mask[:width]


def entries_of(replaced):
    """Returns which entries of each param belong to replaced units, by path."""
    first = mask_of(replaced["dense_0"], 6)
    second = mask_of(replaced.get("dense_1", []), 5)
    return {
        "dense_0/kernel": np.broadcast_to(first, (4, 6)),
        "dense_0/bias": first,
        "dense_1/kernel": first[:, None] | second,
        "dense_1/bias": second,
        "head/kernel": np.broadcast_to(second[:, None], (5, 3)),
        "head/bias": np.zeros(3, bool),
    }


def by_path(tree):
    """Returns the leaves of a tree by path, keys joined by `/`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def assert_equal(actual, wanted):
    """Bit for bit, for trees of arrays without typed keys."""
    chex.assert_trees_all_equal(actual, wanted)


def assert_close(actual, wanted):
    """Up to how different programs round, for trees of arrays without typed keys."""
    chex.assert_trees_all_close(actual, wanted, rtol=1e-5, atol=1e-6)


def primitives(jaxpr, is_conditional=False):
    """Yields the name of each primitive, and whether it is in a conditional."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, is_conditional
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda node: isinstance(node, ClosedJaxpr | Jaxpr)
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if isinstance(inner, Jaxpr):
                yield from primitives(inner, is_conditional or name == "cond")

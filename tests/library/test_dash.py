"""DASH: the equation, by layer kind and layout, and when it acts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers import at, dash

NUM_STEPS = 4
EVENT = 3  # The average starts anew with the fourth update.
PARAMS = tiny.make_conv_params()
GRADS = tiny.make_grads(NUM_STEPS, PARAMS)
A, LOWEST = 0.4, 0.2


def cosine(x, y):
    return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def shrink(path, param, direction):
    if path.startswith("norm"):
        return param
    if param.ndim == 1:
        vectors = [...]
    elif param.ndim == 2:
        vectors = [(slice(None), unit) for unit in range(param.shape[1])]
    else:
        vectors = [(slice(None), slice(None), *pair) for pair in np.ndindex(2, 3)]
    new = param.copy()
    for vector in vectors:
        factor = np.clip(cosine(param[vector], direction[vector]), LOWEST, 1)
        new[vector] = factor * param[vector]
    return new


def test_it_is_the_equation():
    tx = dash(optax.sgd(0.1), at(EVENT, EVENT + 1), smoothing=A, lowest=LOWEST)
    history = tiny.loop(tx, PARAMS, GRADS, {"none": np.ones(NUM_STEPS)})
    factors = []
    for path, param in tiny.by_path(PARAMS).items():
        param = np.asarray(param, np.float64)
        direction = np.zeros(param.shape)
        for update, grad in enumerate(tiny.by_path(GRADS)[path], start=1):
            direction = (1 - A) * direction - A * grad
            param = param - 0.1 * grad
            if update >= EVENT:
                before, param = param, shrink(path, param, direction)
                factors += [*(param / before).ravel()]
                direction = np.zeros(param.shape)
            params, state = history[update - 1]
            np.testing.assert_allclose(
                tiny.by_path(params)[path], param, rtol=1e-4, atol=1e-6, err_msg=path
            )
            np.testing.assert_allclose(
                tiny.by_path(state.direction)[path], direction, rtol=1e-5, atol=1e-6
            )
    # All kinds of factors occur: the lowest, those between, and 1.
    factors = np.array(factors)
    assert np.isclose(factors, LOWEST).any()
    assert (factors > 1.1 * LOWEST).any()


def test_the_other_layout_shrinks_the_same_weights():
    """`[in, out]` and `[out, in]`, `[height, width, in, out]` and `[out, in, ...]`."""

    def turned(tree):
        return jax.tree.map(
            lambda leaf: {2: lambda: leaf.T, 4: lambda: leaf.transpose(3, 2, 0, 1)}.get(
                leaf.ndim, lambda: leaf
            )(),
            tree,
        )

    grads = tiny.at(GRADS, 0)
    after = []
    for layout, params, gradients in (
        ("io", PARAMS, grads),
        ("oi", turned(PARAMS), turned(grads)),
    ):
        tx = dash(optax.sgd(0.1), at(1), layout=layout)
        updates, _ = tx.update(gradients, tx.init(params), params)
        after.append(optax.apply_updates(params, updates))
    tiny.assert_close(turned(after[0]), after[1])


def test_vectors_of_zeros_have_cosine_0():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    tx = dash(optax.sgd(0.1), at(1), lowest=0.25)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"]["kernel"], np.full((2, 2), -0.75))
    np.testing.assert_array_equal(updates["a"]["bias"], 0)


def test_wrong_numbers_are_refused():
    for wrong in ({"lowest": 1.5}, {"smoothing": -0.1}, {"layout": "xy"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            dash(optax.sgd(0.1), at(1), **wrong)

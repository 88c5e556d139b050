"""Selective weight reinitialization against a NumPy loop, its draws and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbp_jax.optimizers import at, every, selective_weight_reinitialization

NUM_STEPS = 3
SHAPES = {"dense": {"kernel": (4, 6), "bias": (8,)}, "norm": {"scale": (4,)}}


def draw(seed, *leading):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=(*leading, *shape))),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def chosen(score, fraction, selection):
    """Which weights go, one after the other."""
    flat = score.ravel()
    lowest = sorted(range(flat.size), key=lambda index: (flat[index], index))
    if selection == "fraction":
        lowest = lowest[: round(fraction * flat.size)]
    else:
        limit = fraction * flat.mean()
        lowest = [index for index in lowest if flat[index] <= limit]
    mask = np.zeros(flat.size, bool)
    mask[lowest] = True
    return mask.reshape(score.shape)


@pytest.mark.parametrize("utility", ["magnitude", "gradient"])
@pytest.mark.parametrize(
    ("selection", "fraction"), [("fraction", 0.25), ("threshold", 0.6)]
)
def test_it_is_the_algorithm(utility, selection, fraction):
    """With gradient descent in front, and events after the first and third update."""
    with jax.enable_x64(True):
        params, grads, fresh = draw(0), draw(1, NUM_STEPS), draw(2)
        # Ties, of which the lowest index goes first.
        params["dense"]["bias"] = params["dense"]["bias"].at[2:].set(0.0)
        grads["dense"]["bias"] = grads["dense"]["bias"].at[:, 2:].set(0.0)
        link = selective_weight_reinitialization(
            at(1, 3),
            lambda key: fresh,
            fraction=fraction,
            utility=utility,
            selection=selection,
            key=tiny.FAST_KEY,
        )
        tx = optax.chain(optax.sgd(0.1), link)

        @jax.jit
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params, grad=grads)
            return optax.apply_updates(params, updates), state

        wanted, new = tiny.by_path(params), tiny.by_path(fresh)
        state, num_redrawn = tx.init(params), 0
        for index in range(NUM_STEPS):
            params, state = step(params, state, tiny.at(grads, index))
            for path, grad in tiny.by_path(tiny.at(grads, index)).items():
                wanted[path] = wanted[path] - 0.1 * grad
                score = np.abs(wanted[path])
                if utility == "gradient":
                    score = score * np.abs(grad)
                if index != 1:
                    mask = chosen(score, fraction, selection)
                    num_redrawn += mask.sum()
                    wanted[path] = np.where(mask, new[path], wanted[path])
                np.testing.assert_allclose(
                    tiny.by_path(params)[path], wanted[path], rtol=1e-10, err_msg=path
                )
    assert 10 < num_redrawn < 50  # Of 36, twice.


def update_once(params, fraction, key, init_fn, **options):
    """The params after one update of zeros with an event."""
    tx = selective_weight_reinitialization(
        every(1), init_fn, fraction=fraction, key=key, **options
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.apply_updates(params, tx.update(zeros, tx.init(params), params)[0])


def test_a_fraction_of_a_weight_goes_with_its_probability():
    params = {"a": jnp.ones(3), "b": 2 * jnp.ones(3)}

    def count(key):
        new = update_once(
            params, 0.5, key, lambda key: {"a": jnp.zeros(3), "b": jnp.zeros(3)}
        )
        return (new["a"] == 0).sum(), (new["b"] == 0).sum()

    counts = np.array(jax.jit(jax.vmap(count))(jax.random.split(tiny.KEY, 400)))
    assert set(counts.ravel()) == {1, 2}  # Half of three.
    np.testing.assert_allclose(counts.mean(axis=1), 1.5, atol=0.1)
    assert abs(np.corrcoef(counts)[0, 1]) < 0.2  # Each tensor has its own chance.


def test_draws_are_those_of_init_fn_and_new_at_every_event():
    params = {"kernel": jnp.zeros((60, 60))}
    tx = selective_weight_reinitialization(
        every(1),
        lambda key: optax.tree.random_like(key, params),
        fraction=1.0,
        key=tiny.KEY,
    )
    update, state, draws = jax.jit(tx.update), tx.init(params), []
    for _ in range(2):
        updates, state = update(params, state, params)
        draws.append(np.ravel(updates["kernel"]))
    for weights in draws:
        assert abs(weights.mean()) < 0.06
        np.testing.assert_allclose(weights.std(), 1, rtol=0.05)
    assert abs(np.corrcoef(draws)[0, 1]) < 0.06


def test_excluded_layers_and_diverged_weights_are_left_alone():
    params = {
        "hidden": {"kernel": jnp.array([[np.nan, 1.0], [2.0, 3.0]])},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    tens = jax.tree.map(lambda leaf: jnp.full_like(leaf, 10), params)
    new = update_once(params, 0.5, tiny.FAST_KEY, lambda key: tens, exclude=("head",))
    np.testing.assert_array_equal(new["hidden"]["kernel"], [[np.nan, 10], [10, 3]])
    np.testing.assert_array_equal(new["head"]["kernel"], 1)


@pytest.mark.parametrize("selection", ["fraction", "threshold"])
def test_at_fraction_0_dead_weights_stay(selection):
    """A threshold of 0 would be their utility."""
    params = {"kernel": jnp.zeros((2, 2))}
    ones = jax.tree.map(jnp.ones_like, params)
    options = {"init_fn": lambda key: ones, "selection": selection}
    tiny.assert_equal(update_once(params, 0.0, tiny.FAST_KEY, **options), params)
    assert update_once(params, 0.5, tiny.FAST_KEY, **options)["kernel"].max() == 1


def test_errors():
    params = {"kernel": jnp.ones((2, 2))}

    def make(fraction=0.5, init_fn=lambda key: {}, **options):
        return selective_weight_reinitialization(
            every(1), init_fn, fraction=fraction, key=tiny.FAST_KEY, **options
        )

    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 1.5"):
        make(1.5)
    make(1.5, selection="threshold")
    with pytest.raises(ValueError, match=r"fraction must be in \[0, inf\], got -0.1"):
        make(-0.1, selection="threshold")
    with pytest.raises(ValueError, match="utility must be one of .*, got 'weight'"):
        make(utility="weight")
    with pytest.raises(ValueError, match="selection must be one of .*, got 'lowest'"):
        make(selection="lowest")
    with pytest.raises(ValueError, match="exclude names 'head', which is not in"):
        make(exclude=("head",)).init(params)
    tx = make(utility="gradient")
    with pytest.raises(ValueError, match="got no grad.* params, grad=grads"):
        tx.update(params, tx.init(params), params)
    tx = make()
    with pytest.raises(ValueError, match="Return a tree like the params"):
        tx.update(params, tx.init(params), params)

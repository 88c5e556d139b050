"""Whatever the initializer, reborn units get what it gives them in a whole kernel."""

from full_optimization import full_jit
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax
from cbp_jax.initializers import unit_by_unit


def numbered(key, shape, dtype):
    """Numbers the entries of a whole kernel, so that they tell where they lay."""
    del key
    return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)


def reborn(params, group, initializer, features):
    """Kernels after one update in which three units of a group were reborn."""
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.0),
        (group,),
        replacement_rate=1.0,
        max_per_step=3,
        maturity_threshold=0,
        initializer=initializer,
        key=tiny.FAST_KEY,
    )
    new, state = tiny.still_step(tx)(params, tx.init(params), features)
    mask = tiny.mask_of(state.replaced[group.name], features[group.name].shape[-1])
    assert mask.sum() == 3
    return new, mask


# Shape of a whole kernel [*window, fan_in, N], how the params hold it, and options.
KERNELS = {
    "dense": ((3, 5), lambda whole: whole, {}),
    "convolution": ((2, 2, 3, 5), lambda whole: whole, {}),
    "channels_first": (
        (2, 2, 3, 5),
        lambda whole: np.moveaxis(whole, (-1, -2), (0, 1)),
        {"layout": "oi"},
    ),
    "two_inputs": ((6, 5), lambda whole: whole.reshape(2, 3, 5), {"input_axes": 2}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_unit_gets_its_own_weights_of_a_whole_kernel(name):
    shape, held, options = KERNELS[name]
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    params = {"in": -jnp.ones_like(held(whole)), "out": jnp.ones((5, 5))}
    group = cbp_jax.UnitGroup("group", "in", outgoing="out", **options)
    new, mask = reborn(params, group, numbered, {"group": jnp.ones((2, 5))})
    is_reborn = held(np.broadcast_to(mask, shape))
    np.testing.assert_array_equal(new["in"], np.where(is_reborn, held(whole), -1))


def test_a_reborn_layer_of_an_orthogonal_network_is_orthogonal_in_every_lane():
    group = cbp_jax.UnitGroup("group", "in", outgoing="out")
    params = {"in": jnp.ones((7, 4)), "out": jnp.ones((4, 2))}

    @jax.jit
    @jax.vmap
    def lane(key):
        tx = cbp_jax.continual_backprop(
            optax.sgd(0.0),
            (group,),
            replacement_rate=1.0,
            maturity_threshold=0,
            initializer=jax.nn.initializers.orthogonal(2.0),
            key=key,
        )
        features = {"group": jnp.ones((2, 4))}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params, features=features)
        return optax.apply_updates(params, updates)["in"]

    kernels = np.asarray(lane(jax.random.split(tiny.KEY, 3)))
    for kernel in kernels:
        np.testing.assert_allclose(kernel.T @ kernel, 4 * np.eye(4), atol=1e-5)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_a_marked_initializer_is_asked_for_single_units():
    def ones_for_one(key, shape, dtype):
        return numbered(key, shape, dtype) + shape[-1]

    group = cbp_jax.UnitGroup("group", "in", outgoing="out")
    params = {"in": -jnp.ones((3, 5)), "out": jnp.ones((5, 2))}
    features = {"group": jnp.ones((2, 5))}
    new, mask = reborn(params, group, unit_by_unit(ones_for_one), features)
    np.testing.assert_array_equal(new["in"][:, mask], [[1] * 3, [2] * 3, [3] * 3])


@pytest.mark.parametrize(
    ("initializer", "words"),
    [
        (lambda shape, dtype: jnp.ones(shape, dtype), ": lambda key, shape, dtype"),
        (
            lambda key, shape, dtype: jnp.ones(shape[:-1], dtype),
            r"returned shape \(3,\)",
        ),
    ],
)
def test_an_initializer_that_cannot_draw_the_kernel_is_refused(initializer, words):
    group = cbp_jax.UnitGroup("group", "in", outgoing="out")
    params = {"in": jnp.ones((3, 5)), "out": jnp.ones((5, 2))}
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.1), (group,), initializer=initializer, key=tiny.FAST_KEY
    )
    with pytest.raises(ValueError, match=words) as raised:
        tx.init(params)
    assert "unit group 'group'" in str(raised.value)
    assert "(3, 5)" in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2])
def test_weights_drawn_always_are_those_drawn_when_due(most):
    """Bit for bit, in lanes of which few replace a unit at the same update."""
    num_steps = 12
    params, grads = tiny.make_params(), tiny.make_grads(num_steps, tiny.make_params())
    features = tiny.make_features(num_steps)

    def histories(draw):
        def lane(key, rate):
            tx = cbp_jax.continual_backprop(
                optax.adam(0.1),
                tiny.UNITS,
                replacement_rate=rate,
                max_per_step=most,
                maturity_threshold=1,
                key=key,
                draw=draw,
            )
            return tiny.run(tx, params, grads, features)

        # Compiled fast, Adam's step is rounded in another way in each program.
        return full_jit(jax.vmap(lane))(
            jax.random.split(tiny.KEY), jnp.array([0.02, most / 5])
        )

    when_due, always = histories("when_due"), histories("always")
    tiny.assert_equal(always, when_due)
    # [lanes, groups]: both lanes replace units, at some updates one of them alone.
    num_replaced = np.asarray(list(always[1].num_replaced.values()))[..., -1]
    assert (num_replaced > 0).any(axis=0).all()
    assert (num_replaced[:, 0] < num_replaced[:, 1]).all()

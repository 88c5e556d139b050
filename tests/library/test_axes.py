"""Stacked layers, heads and windows: kernels with more axes than inputs and units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import cbp_jax

NUM_STEPS = 12
NUM_SLICES = 3
STACKED = cbp_jax.UnitGroup(
    "mlp", "up", "up_bias", "down", "down_bias", stack_axes=1, norm_scale="scale"
)
SHAPES = {
    "up": (4, 6),
    "up_bias": (6,),
    "down": (6, 2),
    "down_bias": (2,),
    "scale": (6,),
    "other": (2, 3),
}


def draw(shapes, *leading, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(*leading, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


def run(group, params, grads, features, name="continual_backprop", **options):
    """Params and states after every update; deterministic but for the choice."""
    options = {"initializer": tiny.rows_initializer, "key": tiny.FAST_KEY} | options
    base = optax.sgd(0.1, momentum=0.9)
    if name == "continual_backprop":
        tx = cbp_jax.continual_backprop(
            base,
            (group,),
            replacement_rate=0.1,
            maturity_threshold=2,
            transfer_mean=True,
            **options,
        )
    else:
        tx = cbp_jax.redo(base, (group,), threshold=0.7, reset_every=3, **options)
    return jax.device_get(
        jax.jit(tiny.run, static_argnums=0)(tx, params, grads, features)
    )


@pytest.mark.parametrize("name", ["continual_backprop", "redo"])
def test_each_slice_of_a_stack_is_a_network_of_its_own(name):
    params, grads = draw(SHAPES, NUM_SLICES), draw(SHAPES, NUM_STEPS, NUM_SLICES)
    features = draw({"mlp": (5, 6)}, NUM_STEPS, NUM_SLICES)
    together, state = run(STACKED, params, grads, features, name)
    alone = STACKED._replace(stack_axes=0)
    for index in range(NUM_SLICES):
        slice_grads, slice_features = (
            jax.tree.map(lambda leaf, index=index: leaf[:, index], tree)
            for tree in (grads, features)
        )
        wanted, wanted_state = run(
            alone, tiny.at(params, index), slice_grads, slice_features, name
        )
        tiny.assert_close(
            jax.tree.map(lambda leaf, index=index: leaf[:, index], together), wanted
        )
        for field in ("units", "replaced", "num_replaced", "base_state"):
            actual = jax.tree.map(
                lambda leaf, index=index: leaf[:, index], getattr(state, field)
            )
            tiny.assert_close(actual, getattr(wanted_state, field))
    numbers = state.num_replaced["mlp"]
    assert numbers.shape == (NUM_STEPS, NUM_SLICES)
    assert numbers[-1].min() > 1
    # They do not all lose the same units.
    assert (state.replaced["mlp"][:, 0] != state.replaced["mlp"][:, 1]).any()


def test_slices_draw_weights_of_their_own():
    group = cbp_jax.UnitGroup("mlp", "up", None, "down", stack_axes=1)
    params = draw({"up": (4, 6), "down": (6, 2)}, 2)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape)), params)
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.1),
        (group,),
        replacement_rate=1.0,
        maturity_threshold=0,
        key=tiny.KEY,
    )
    features = draw({"mlp": (5, 6)}, 1, 2)
    new, _ = jax.jit(tiny.run, static_argnums=0)(tx, params, zeros, features)
    first, second = np.asarray(new["up"][0])
    assert not set(first.ravel()) & set(second.ravel())


def test_two_stack_axes_are_one_of_their_product():
    shapes = {name: SHAPES[name] for name in ("up", "up_bias", "down")}
    group = cbp_jax.UnitGroup("mlp", "up", "up_bias", "down", stack_axes=2)
    params, grads = draw(shapes, 2, 2), draw(shapes, NUM_STEPS, 2, 2)
    features = draw({"mlp": (5, 6)}, NUM_STEPS, 2, 2)
    options = {"name": "redo"}
    two, _ = run(group, params, grads, features, **options)

    def merge(tree, axis):
        return jax.tree.map(
            lambda leaf: leaf.reshape(*leaf.shape[:axis], 4, *leaf.shape[axis + 2 :]),
            tree,
        )

    one, _ = run(
        group._replace(stack_axes=1),
        merge(params, 0),
        merge(grads, 1),
        merge(features, 1),
        **options,
    )
    tiny.assert_close(merge(two, 1), one)


HEADS = {"value": (4, 2, 3), "value_bias": (2, 3), "out": (2, 3, 5)}
MERGED = {"value": (4, 6), "value_bias": (6,), "out": (6, 5)}


@pytest.mark.parametrize("name", ["continual_backprop", "redo"])
def test_numbers_of_heads_are_units_of_their_own(name):
    heads = cbp_jax.UnitGroup(
        "value", "value", "value_bias", "out", "out_bias", unit_axes=2
    )
    shapes = HEADS | {"out_bias": (5,)}
    params, grads = draw(shapes), draw(shapes, NUM_STEPS)
    features = draw({"value": (2, 1, 2, 3)}, NUM_STEPS)

    def merge(tree, leading):
        return {
            leaf: value.reshape(*leading, *MERGED.get(leaf, (5,)))
            for leaf, value in tree.items()
        }

    apart, state = run(heads, params, grads, features, name)
    merged, merged_state = run(
        heads._replace(unit_axes=1),
        merge(params, ()),
        merge(grads, (NUM_STEPS,)),
        {"value": features["value"].reshape(NUM_STEPS, 2, 1, 6)},
        name,
    )
    tiny.assert_close(merge(apart, (NUM_STEPS,)), merged)
    tiny.assert_equal(state.replaced, merged_state.replaced)
    assert state.num_replaced["value"][-1] > 2


def test_a_stream_that_queries_keys_and_values_read():
    """Outgoing kernels of several output axes, incoming ones of several inputs."""
    group = cbp_jax.UnitGroup(
        "stream",
        "out",
        outgoing=("query", "up"),
        input_axes=2,
        output_axes=(2, 1),
    )
    shapes = {"out": (2, 3, 6), "query": (6, 2, 3), "up": (6, 4)}
    flat = {"out": (6, 6), "query": (6, 6), "up": (6, 4)}
    params, grads = draw(shapes), draw(shapes, NUM_STEPS)
    features = draw({"stream": (5, 6)}, NUM_STEPS)

    def flatten(tree, leading):
        return {
            name: leaf.reshape(*leading, *flat[name]) for name, leaf in tree.items()
        }

    new, _ = run(group, params, grads, features, "redo")
    wanted, state = run(
        cbp_jax.UnitGroup("stream", "out", outgoing=("query", "up")),
        flatten(params, ()),
        flatten(grads, (NUM_STEPS,)),
        features,
        "redo",
    )
    tiny.assert_close(flatten(new, (NUM_STEPS,)), wanted)
    assert state.num_replaced["stream"][-1] > 2


@pytest.mark.parametrize("layout", ["io", "oi"])
def test_a_convolution_over_time_may_feed_one_and_a_dense_layer(layout):
    group = cbp_jax.UnitGroup(
        "conv", "conv", outgoing=("next", "head"), layout=layout, spatial_axes=1
    )
    shapes = {"conv": (3, 2, 4), "next": (3, 4, 5), "head": (8, 2)}
    if layout == "oi":
        shapes = {"conv": (4, 2, 3), "next": (5, 4, 3), "head": (2, 8)}
    params = draw(shapes)
    grads = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape)), params)
    features = draw({"conv": (3, 2, 4)}, 1)
    tx = cbp_jax.continual_backprop(
        optax.sgd(0.1),
        (group,),
        replacement_rate=0.5,
        maturity_threshold=0,
        initializer=tiny.rows_initializer,
        key=tiny.FAST_KEY,
    )
    new, state = jax.jit(tiny.run, static_argnums=0)(tx, params, grads, features)
    mask = tiny.mask_of(state.replaced["conv"][0], 4)
    assert mask.sum() == 2
    # A flattened map has its channels last, or first where layers are "oi".
    flat = np.tile(mask, 2) if layout == "io" else np.repeat(mask, 2)
    axes = {"conv": -1, "next": -2, "head": -2}
    masks = {"conv": mask, "next": mask, "head": flat}
    if layout == "oi":
        axes = {"conv": 0, "next": 1, "head": 1}
    for name, axis in axes.items():
        before, after = (
            np.moveaxis(tree, axis, -1) for tree in (params[name], new[name][0])
        )
        np.testing.assert_array_equal(
            after[..., ~masks[name]], before[..., ~masks[name]]
        )
        if name != "conv":
            np.testing.assert_array_equal(after[..., masks[name]], 0)


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        # What nn.scan and a layer of experts make of a dense layer.
        ({"up": (3, 4, 6), "down": (3, 6, 2)}, {}, "'up' has shape (3, 4, 6), but 2"),
        # Attention.
        ({"up": (4, 2, 3), "down": (2, 3, 5)}, {}, "'up' has shape (4, 2, 3), but 2"),
        ({"up": (4, 6), "down": (6, 2, 3)}, {}, "'down' has shape (6, 2, 3), but 2"),
        ({"up": (3, 3, 3, 4, 6), "down": (6, 2)}, {}, "spatial_axes"),
        ({"up": (3, 4, 6), "down": (2, 6, 2)}, {"stack_axes": 1}, "start with (3,)"),
        (
            {"up": (4, 2, 3), "down": (3, 2, 5)},
            {"unit_axes": 2},
            "units of shape (3, 2)",
        ),
        ({"up": (4, 6), "down": (6, 2)}, {"output_axes": (1, 1)}, "leaves, got (1, 1)"),
    ],
)
def test_axes_that_are_not_declared_are_refused(shapes, options, words):
    group = cbp_jax.UnitGroup("mlp", "up", outgoing="down", **options)
    tx = cbp_jax.continual_backprop(optax.sgd(0.1), (group,), key=tiny.FAST_KEY)
    with pytest.raises(ValueError, match="Unit group 'mlp'") as raised:
        jax.eval_shape(tx.init, draw(shapes))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("shapes", "options", "feature", "words"),
    [
        ({"up": (3, 4, 6), "down": (3, 6, 2)}, {"stack_axes": 1}, (5, 6), "stack axes"),
        ({"up": (4, 2, 3), "down": (6, 2)}, {"unit_axes": 2}, (5, 6), "(2, 3)"),
        # Stacked heads have four axes, like the kernel of a convolution.
        (
            {"up": (2, 4, 2, 3), "down": (2, 2, 3, 5)},
            {},
            (2, 5, 7, 2, 3),
            "more axes than a two-dimensional convolution",
        ),
    ],
)
def test_features_that_do_not_fit_the_axes_are_refused(shapes, options, feature, words):
    group = cbp_jax.UnitGroup("mlp", "up", outgoing="down", **options)
    tx = cbp_jax.continual_backprop(optax.sgd(0.1), (group,), key=tiny.FAST_KEY)
    params = draw(shapes)

    def update(params):
        features = {"mlp": jnp.ones(feature)}
        return tx.update(params, tx.init(params), params, features=features)

    with pytest.raises(ValueError, match="Feature 'mlp'") as raised:
        jax.eval_shape(update, params)
    assert words in str(raised.value)

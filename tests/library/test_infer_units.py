"""Finding the groups of units of a network by tracing it."""

import copy
import functools

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import optax
import pytest
import tiny
import tiny_networks as nets
from tiny_networks import inputs, relu

import cbp_jax
from cbp_jax import UnitGroup, infer_units
from cbp_jax.networks import MLP, ConvNet

X = inputs(4, 3)


def variables_of(network, example):
    """Returns the shapes of the params, and a state of zeros."""
    shapes = dict(jax.eval_shape(network.init, jax.random.key(0), example))
    params = shapes.pop("params")
    return params, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        *(
            (MLP((4, 5), 2, normalization=name), (2, 3))
            for name in ("none", "batch", "online", "layer", "rms")
        ),
        (MLP((4, 5), 2, activation="crelu"), (2, 3)),
        *(
            (
                ConvNet(
                    conv_channels=(3, 4),
                    conv_sizes=(3, 3),
                    dense_units=(5,),
                    convolution=convolution,
                    normalization=normalization,
                ),
                # Of 9 channels patches are laid out plainly, of 3 in squares.
                (2, 14, 14, 9),
            )
            for convolution, normalization in (("xla", "batch"), ("patches", "none"))
        ),
    ],
)
def test_the_projects_networks_have_the_groups_that_they_name(network, shape):
    params, state = variables_of(network, jnp.ones(shape))

    def apply(params, inputs):
        return network.apply({"params": params, **state}, inputs)[0]

    units = infer_units(apply, params, jnp.ones(shape))
    # Statistics are no params.
    wanted = [group._replace(statistics=None) for group in network.units()]
    assert list(units) == wanted
    assert list(units.left_out) == ["head/kernel"]


def test_a_residual_stream_is_one_group_of_all_that_feed_and_read_it():
    stream, first, second = infer_units(nets.residual, nets.RESIDUAL, X)
    assert stream == UnitGroup(
        "stem",
        incoming=("stem", "down0", "down1"),
        bias=("stem_bias", "shift0", "shift1"),
        outgoing=("up0", "up1", "head"),
        norm_scale=("scale0", "scale1"),
    )
    assert first == UnitGroup("up0", incoming="up0", bias="up0_bias", outgoing="down0")
    assert (second.incoming, second.outgoing) == ("up1", "down1")


def test_kernels_of_the_other_layout_and_a_map_with_channels_first():
    images = nets.IMAGES.transpose(0, 3, 1, 2)
    conv, dense = infer_units(
        nets.pooled_channels_first, nets.POOLED_CHANNELS_FIRST, images
    )
    assert conv == UnitGroup(
        "conv", incoming="conv", bias="conv_bias", outgoing="dense", layout="oi"
    )
    assert dense == UnitGroup("dense", incoming="dense", outgoing="head", layout="oi")


@jax.custom_vjp
def custom(params, x):
    return nets.chain(params, x)


custom.defvjp(lambda *arguments: (custom(*arguments), None), lambda *_: None)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda apply: custom])
def test_calls_are_looked_through(wrap):
    units = infer_units(wrap(nets.chain), nets.CHAIN, X)
    assert units == infer_units(nets.chain, nets.CHAIN, X)
    assert units[0] == UnitGroup(
        "a", incoming="a", bias="a_bias", outgoing="b", outgoing_bias="b_bias"
    )


def test_what_the_caller_drops_does_not_count():
    @jax.jit
    def with_statistics(params, x):
        hidden = x @ params["a"] + params["a_bias"]
        return nets.chain(params, x), lax.sort(hidden, dimension=0)

    def apply(params, x):
        return with_statistics(params, x)[0]

    assert infer_units(apply, nets.CHAIN, X) == infer_units(nets.chain, nets.CHAIN, X)
    with pytest.raises(ValueError, match="a: left out because its units go into sort"):
        infer_units(with_statistics, nets.CHAIN, X)


def test_nothing_is_computed():
    shapes = jax.eval_shape(lambda: (nets.CHAIN, X))
    assert infer_units(nets.chain, *shapes) == infer_units(nets.chain, nets.CHAIN, X)


def test_a_transformers_mlp_is_found_and_its_attention_left_out():
    with pytest.raises(ValueError) as error:
        infer_units(nets.transformer, nets.TRANSFORMER, nets.TOKENS)
    text = str(error.value)
    assert "attention/query, attention/key: left out because its units are" in text
    assert "as in attention" in text
    assert "attention/query (4, 2, 2)" in text  # Whose axes keep the stream unnamed.
    assert "leave=('table', 'attention/out', 'down'" in text
    assert "up:\n  incoming: up" in text
    (group,) = infer_units(
        nets.transformer,
        nets.TRANSFORMER,
        nets.TOKENS,
        leave=("table", "attention/*", "down"),
    )
    assert group == UnitGroup("up", incoming="up", bias="up_bias", outgoing="down")


def test_the_units_print_readably_and_survive_a_copy():
    units = infer_units(nets.chain, nets.CHAIN, X)
    first, second = str(units).split("b:\n")
    assert first == (
        "a:\n  incoming: a\n  bias: a_bias\n  outgoing: b\n"
        "  outgoing_bias: b_bias\n  layout: io\n"
    )
    assert second.endswith("head: left out because its outputs are the network's.")
    assert copy.deepcopy(units).left_out == units.left_out


def test_names_of_nnx_are_the_layers():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.hidden(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    units = infer_units(lambda params, x: nnx.merge(graph, params)(x), params, X)
    assert tuple(units) == cbp_jax.sequential_units(("hidden", "head"))


def test_names_of_equinox_are_the_layers():
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(3, 2, 5, 2, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_inexact_array)
    units = infer_units(
        lambda params, x: jax.vmap(equinox.combine(params, static))(x), params, X
    )
    assert tuple(units) == cbp_jax.sequential_units(
        [f"layers/{index}" for index in range(3)], kernel="weight", layout="oi"
    )


def test_training_with_found_units_is_training_with_written_ones():
    written = (
        UnitGroup("a", "a", "a_bias", "b", "b_bias"),
        UnitGroup("b", "b", "b_bias", "head", "head_bias"),
    )
    found = infer_units(nets.chain, nets.CHAIN, X)

    def features_of(params):
        first = relu(X @ params["a"] + params["a_bias"])
        return {"a": first, "b": relu(first @ params["b"] + params["b_bias"])}

    def by_hand(params):
        return nets.chain(params, X), features_of(params)

    def by_trace(params):
        return cbp_jax.with_features(nets.chain, found)(params, X)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def train(units, forward):
        tx = cbp_jax.continual_backprop(
            optax.sgd(0.1),
            units,
            replacement_rate=0.1,
            maturity_threshold=2,
            key=tiny.FAST_KEY,
        )

        def step(carry, _):
            params, state = carry

            def loss_fn(params):
                outputs, features = forward(params)
                return jnp.mean(jnp.square(outputs - 1)), features

            grads, features = jax.grad(loss_fn, has_aux=True)(params)
            updates, state = tx.update(grads, state, params, features=features)
            return (optax.apply_updates(params, updates), state), state.replaced

        return lax.scan(step, (nets.CHAIN, tx.init(nets.CHAIN)), length=20)

    (params, _), replaced = train(tuple(found), by_trace)
    (wanted, _), wanted_replaced = train(written, by_hand)
    tiny.assert_equal(replaced, wanted_replaced)
    tiny.assert_close(params, wanted)
    assert (replaced["a"] < 5).sum() > 2

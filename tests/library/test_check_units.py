"""Proving by forward passes that units are named rightly, and that they are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks as nets
from tiny_networks import draw, inputs, relu

from cbp_jax import UnitGroup, check_units, infer_units, sequential_units
from cbp_jax._discovery.checking import ALONE, TOGETHER
from cbp_jax.networks import MLP

X = inputs(4, 3)
FIRST = UnitGroup("a", "a", "a_bias", "b", "b_bias")
SECOND = UnitGroup("b", "b", "b_bias", "head", "head_bias")
STREAM = UnitGroup(
    "stem",
    incoming=("stem", "down0", "down1"),
    bias=("stem_bias", "shift0", "shift1"),
    outgoing=("up0", "up1", "head"),
    norm_scale=("scale0", "scale1"),
)
MAP = UnitGroup("conv", "conv", "conv_bias", "dense")


def chain_features(params, x):
    first = relu(x @ params["a"] + params["a_bias"])
    return {"a": first, "b": relu(first @ params["b"] + params["b_bias"])}


def test_right_names_pass():
    seen = check_units(
        nets.chain, nets.CHAIN, (FIRST, SECOND), X, features=chain_features
    )
    assert seen == {"a": ALONE, "b": ALONE}


def test_units_that_share_a_normalization_are_told_from_others():
    units = (STREAM, UnitGroup("up0", "up0", "up0_bias", "down0"))
    seen = check_units(nets.residual, nets.RESIDUAL, units, X)
    assert seen == {"stem": TOGETHER, "up0": ALONE}


def test_flattened_maps_pass_in_the_order_of_their_layout():
    assert check_units(nets.pooled, nets.POOLED, (MAP,), nets.IMAGES)
    group = MAP._replace(layout="oi")
    images = nets.IMAGES.transpose(0, 3, 1, 2)
    apply, params = nets.pooled_channels_first, nets.POOLED_CHANNELS_FIRST
    assert check_units(apply, params, (group,), images)


def test_newborn_params_hide_nothing():
    """Biases of 0 and scales of 1, at which a forgotten one would change nothing."""
    network = MLP((5, 4), 2, normalization="layer")
    params = network.init(jax.random.key(0), X)["params"]

    def apply(params, x):
        return network.apply({"params": params}, x)[0]

    assert check_units(apply, params, network.units(), X)
    first, second = network.units()
    for field in ("norm_scale", "norm_bias"):
        with pytest.raises(ValueError, match="'dense_0': reordering its units"):
            check_units(apply, params, (first._replace(**{field: None}), second), X)


def test_group_normalization_passes():
    def apply(params, x):
        hidden = (x @ params["a"]).reshape(len(x), 2, 4)
        hidden = nets.layer_norm(hidden, 1, 0).reshape(len(x), 8)
        return relu(hidden * params["scale"]) @ params["head"]

    params = draw(a=(3, 8), scale=(8,), head=(8, 2))
    (group,) = infer_units(apply, params, X)
    assert group == UnitGroup("a", "a", None, "head", norm_scale="scale")
    assert check_units(apply, params, (group,), X) == {"a": TOGETHER}


def tied(params, x):
    hidden = relu(relu(x @ params["a"]) @ params["tied"])
    return relu(hidden @ params["tied"]) @ params["head"]


TIED = draw(a=(3, 4), tied=(4, 4), head=(4, 2))


def returned(params, x):
    return nets.chain(params, x), chain_features(params, x)["a"]


def flattened_otherwise(params, images):
    hidden = relu(nets.convolve(images, params["conv"]) + params["conv_bias"])
    flat = hidden.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return relu(flat @ params["dense"]) @ params["head"]


OTHERWISE = nets.POOLED | draw(conv=(3, 3, 2, 4), dense=(16 * 4, 5))


WRONG = {
    "a forgotten consumer of a residual stream": (
        nets.residual,
        nets.RESIDUAL,
        STREAM._replace(outgoing=("up0", "head")),
        "'stem': reordering its units .* be right with 'up1' as outgoing",
    ),
    "a forgotten producer of a residual stream": (
        nets.residual,
        nets.RESIDUAL,
        STREAM._replace(incoming=("stem", "down0")),
        "'stem': reordering its units .* be right with 'down1' as incoming",
    ),
    "a bias of none": (
        nets.chain,
        nets.CHAIN,
        FIRST._replace(bias=None),
        "'a': reordering its units .* be right with 'a_bias' as bias",
    ),
    "a bias of other units": (
        nets.chain,
        {**nets.CHAIN, "b": nets.draw(b=(5, 5))["b"]} | draw(b_bias=(5,), head=(5, 2)),
        FIRST._replace(bias=("a_bias", "b_bias")),
        "'a': with its outgoing weights at 0, redrawing .'b_bias'. still changes",
    ),
    "a consumer of other units": (
        nets.residual,
        nets.RESIDUAL,
        STREAM._replace(outgoing=("up0", "up1", "head", "down0")),
        "not a multiple",
    ),
    "a tied weight": (
        tied,
        TIED,
        UnitGroup("tied", "tied", None, "head"),
        "'tied': reordering its units .* used twice .tied.",
    ),
    "a weight tied to the outputs": (
        lambda params, x: relu(x @ params["a"]) @ params["a"].T,
        TIED,
        UnitGroup("a", "a", None, "head"),
        "'a': redrawing its outgoing leaf 'head' does not change the outputs",
    ),
    "a leaf of another branch": (
        lambda params, x: (relu(x @ params["a"]) @ params["head"], x @ params["a"]),
        TIED,
        UnitGroup("a", "a", None, "head"),
        "'a': with its outgoing weights at 0, redrawing .'a'. still changes",
    ),
    "a kernel that is not used": (
        nets.chain,
        {**nets.CHAIN, "unused": jnp.ones((3, 5))},
        FIRST._replace(incoming="unused"),
        "'a': redrawing its incoming leaf 'unused' does not change the outputs",
    ),
    "layers in the wrong order": (
        lambda params, x: relu(x @ params["a"]) @ params["tied"] @ params["head"],
        draw(a=(4, 4), tied=(4, 4), head=(4, 4)),
        UnitGroup("tied", "a", None, "head"),
        "'tied': reordering its units",
    ),
    "activations among the outputs": (
        returned,
        nets.CHAIN,
        FIRST,
        "'a': with its outgoing weights at 0, .* take them out",
    ),
    "a wrong flattening order": (
        flattened_otherwise,
        OTHERWISE,
        MAP,
        "'conv': reordering .* Its 16 positions are flattened in an order",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_caught_with_a_cure(case):
    apply, params, group, message = WRONG[case]
    example = nets.IMAGES if "conv" in params else X
    if case == "layers in the wrong order":
        example = inputs(4, 4)
    with pytest.raises(ValueError, match=message):
        check_units(apply, params, (group,), example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: {"a": a[:, ::-1], "b": b}, "'a': its feature .* does not follow"),
        (lambda a, b: {"a": b, "b": b}, "'a': its feature has shape"),
        (lambda a, b: {"a": a.T, "b": b}, "'a': its feature has shape"),
        (lambda a, b: {"b": b}, "returned no array for .'a'."),
        (lambda a, b: {"a": a - 1, "b": b}, "'a' .* after the nonlinearity"),
    ],
    ids=["reordered", "another group", "transposed", "missing", "other values"],
)
def test_wrong_features_are_caught(change, message):
    with pytest.raises(ValueError, match=message):
        check_units(
            nets.chain,
            nets.CHAIN,
            (FIRST, SECOND),
            X,
            features=lambda params, x: change(**chain_features(params, x)),
        )


def test_flattened_features_are_compared_position_by_position():
    def pooled_features(params, images):
        hidden = relu(nets.convolve(images, params["conv"]) + params["conv_bias"])
        return hidden.reshape(2, 2, 2, 2, 2, 4).max((2, 4))

    def check(features):
        check_units(nets.pooled, nets.POOLED, (MAP,), nets.IMAGES, features=features)

    check(lambda params, images: {"conv": pooled_features(params, images)})
    with pytest.raises(ValueError, match="'conv' .* what the group's outgoing kernel"):
        check(
            lambda params, images: {
                "conv": pooled_features(params, images).swapaxes(1, 2)
            }
        )


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        check_units(
            lambda params, x: jnp.log(-jnp.abs(nets.chain(params, x)) - 1),
            nets.CHAIN,
            (FIRST,),
            X,
        )


def test_paths_that_do_not_exist_are_refused_as_by_the_transform():
    with pytest.raises(ValueError, match="is not in the params"):
        check_units(nets.chain, nets.CHAIN, sequential_units(("a", "c")), X)


def test_params_are_left_as_they_are():
    before = jax.tree.map(np.array, nets.CHAIN)
    check_units(nets.chain, nets.CHAIN, (FIRST,), X)
    chex.assert_trees_all_equal(nets.CHAIN, before)


def gated(params, x):
    hidden = jax.nn.silu(x @ params["gate"]) * (x @ params["value"])
    return hidden @ params["head"]


def squeezed_and_excited(params, images):
    maps = relu(nets.convolve(images, params["conv"]))
    gates = relu(maps.mean((1, 2)) @ params["squeeze"]) @ params["excite"]
    return (maps * jax.nn.sigmoid(gates)[:, None, None]).mean((1, 2)) @ params["head"]


def unrolled(params, x):
    hidden = relu(x @ params["into"])
    for _ in range(2):
        hidden = relu(hidden @ params["again"])
    return hidden @ params["head"]


FOUND = {
    "chain": (nets.chain, nets.CHAIN, X, 2),
    "residual": (nets.residual, nets.RESIDUAL, X, 3),
    "pooled": (nets.pooled, nets.POOLED, nets.IMAGES, 2),
    "transformer": (nets.transformer, nets.TRANSFORMER, nets.TOKENS, 1),
    "gated": (gated, draw(gate=(3, 4), value=(3, 4), head=(4, 2)), X, 1),
    "squeezed and excited": (
        squeezed_and_excited,
        draw(conv=(3, 3, 2, 4), squeeze=(4, 2), excite=(2, 4), head=(4, 2)),
        nets.IMAGES,
        2,
    ),
    "unrolled": (unrolled, draw(into=(3, 4), again=(4, 4), head=(4, 2)), X, 1),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_found_is_right(case):
    apply, params, example, number = FOUND[case]
    units = infer_units(apply, params, example, leave=("*",))
    assert len(check_units(apply, params, units, example)) == number

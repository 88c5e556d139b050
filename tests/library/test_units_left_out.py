"""What `infer_units` cannot name it says, with the reason."""

from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks as nets
from tiny_networks import draw, inputs, relu

from cbp_jax import infer_units

X = inputs(4, 3)


def scanned(params, x):
    hidden = relu(x @ params["a"])
    hidden, _ = lax.scan(lambda h, w: (relu(h @ w), None), hidden, params["stack"])
    return hidden @ params["head"]


def grouped(params, images):
    hidden = relu(nets.convolve(images, params["a"]))
    hidden = lax.conv_general_dilated(
        hidden,
        params["depthwise"],
        (1, 1),
        "SAME",
        dimension_numbers=nets.NHWC,
        feature_group_count=4,
    )
    return hidden.mean((1, 2)) @ params["head"]


def hidden_of(params, x):
    return relu(x @ params["a"])


A, HEAD = {"a": (3, 4)}, {"head": (4, 2)}
SORRY = {
    "lax.scan": (scanned, {**A, "stack": (2, 4, 4), **HEAD}, "cannot look", "stack"),
    "convolution in groups": (
        grouped,
        {"a": (3, 3, 2, 4), "depthwise": (3, 3, 1, 4), **HEAD},
        "groups of channels",
        "depthwise",
    ),
    "joined": (
        lambda p, x: jnp.concatenate([hidden_of(p, x), x], -1) @ p["head"],
        {**A, "head": (7, 2)},
        "head reads its units concatenated",
        "a",
    ),
    "reordered": (
        lambda p, x: hidden_of(p, x)[:, ::-1] @ p["head"],
        {**A, **HEAD},
        "reordered",
        "a",
    ),
    "bias in another order": (
        lambda p, x: relu(x @ p["a"] + p["bias"][::-1]) @ p["head"],
        {**A, "bias": (4,), **HEAD},
        "bias is combined with its units in another order",
        "a",
    ),
    "flattened in another order": (
        lambda p, x: (
            nets.convolve(x, p["a"]).transpose(0, 3, 1, 2).reshape(2, -1) @ p["head"]
        ),
        {"a": (3, 3, 2, 4), "head": (64, 2)},
        "flattened in which order",
        "a",
    ),
    "tied": (
        lambda p, x: hidden_of(p, x) @ p["a"].T,
        A,
        "used twice",
        "a",
    ),
    "a bias of two layers": (
        lambda p, x: relu(hidden_of(p, x + 1) + p["bias"]) @ p["b"] + p["bias"],
        {**A, "b": (4, 4), "bias": (4,)},
        "bias belongs to other units as well",
        "a",
    ),
    "returned": (
        lambda p, x: (hidden_of(p, x) @ p["head"], hidden_of(p, x)),
        {**A, **HEAD},
        "take them out",
        "a",
    ),
    "summed": (
        lambda p, x: hidden_of(p, x).mean(-1, keepdims=True) @ p["head"],
        {**A, "head": (1, 2)},
        "summed",
        "a",
    ),
    "low rank": (
        lambda p, x: relu(x @ (p["a"] + p["left"] @ p["right"])) @ p["head"],
        {**A, "left": (3, 1), "right": (1, 4), **HEAD},
        "could not follow",
        "a",
    ),
    "experts": (
        lambda p, x: jnp.einsum(
            "ebi,eij->bj", relu(jnp.einsum("bi,eij->ebj", x, p["a"])), p["head"]
        ),
        {"a": (2, 3, 4), "head": (2, 4, 2)},
        "on several axes",
        "a",
    ),
    "one plus scale": (
        lambda p, x: (hidden_of(p, x) * (1 + p["scale"])) @ p["head"],
        {**A, "scale": (4,), **HEAD},
        "is added to scale before it multiplies",
        "a",
    ),
}


@pytest.mark.parametrize("case", SORRY)
def test_what_cannot_be_named_is_said_with_its_reason(case):
    apply, shapes, reason, kernel = SORRY[case]
    params = draw(**shapes)
    example = nets.IMAGES if len(shapes["a"]) == 4 else X
    with pytest.raises(ValueError, match=reason) as error:
        infer_units(apply, params, example)
    assert kernel in str(error.value).split("leave=")[1].split("),")[0]


def test_no_kernel_is_passed_over():
    for apply, params, example in (
        (nets.residual, nets.RESIDUAL, X),
        (nets.pooled, nets.POOLED, nets.IMAGES),
        (nets.transformer, nets.TRANSFORMER, nets.TOKENS),
    ):
        units = infer_units(apply, params, example, leave=("*",))
        fed = [
            name
            for group in units
            for name in np.atleast_1d(np.array(group.incoming, object))
        ]
        kernels = {name for name, leaf in params.items() if leaf.ndim > 1}
        assert sorted([*fed, *units.left_out]) == sorted(kernels)


def test_a_kernel_that_apply_does_not_use_is_said():
    params = {**nets.CHAIN, "forgotten": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match="forgotten: left out because no product"):
        infer_units(nets.chain, params, X)

"""Tiny networks as plain functions of params and inputs, to find units in.

Shapes: B batch, T tokens.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

NHWC = ("NHWC", "HWIO", "NHWC")
relu = jax.nn.relu


def draw(seed=0, **shapes):
    """Returns params of the given shapes, of variance 1 / fan-in."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]) or 1), np.float32
        )
        for name, shape in shapes.items()
    }


def inputs(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def convolve(images, kernel):
    return lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=NHWC
    )


def chain(params, x):
    hidden = relu(x @ params["a"] + params["a_bias"])
    hidden = relu(hidden @ params["b"] + params["b_bias"])
    return hidden @ params["head"] + params["head_bias"]


CHAIN = draw(a=(3, 5), a_bias=(5,), b=(5, 4), b_bias=(4,), head=(4, 2), head_bias=(2,))


def residual(params, x):
    """A stream that a stem and two blocks feed, and that blocks and head read."""
    stream = x @ params["stem"] + params["stem_bias"]
    for block in ("0", "1"):
        hidden = layer_norm(stream, params[f"scale{block}"], params[f"shift{block}"])
        hidden = relu(hidden @ params[f"up{block}"] + params[f"up{block}_bias"])
        stream = stream + hidden @ params[f"down{block}"]
    return stream @ params["head"]


RESIDUAL = draw(
    stem=(3, 6),
    stem_bias=(6,),
    scale0=(6,),
    shift0=(6,),
    up0=(6, 5),
    up0_bias=(5,),
    down0=(5, 6),
    scale1=(6,),
    shift1=(6,),
    up1=(6, 4),
    up1_bias=(4,),
    down1=(4, 6),
    head=(6, 2),
)


def layer_norm(x, scale, shift):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * scale + shift


def pooled(params, images):
    """A convolution, max-pooling, and a dense layer on the flattened map."""
    hidden = relu(convolve(images, params["conv"]) + params["conv_bias"])
    window = (1, 2, 2, 1)
    hidden = lax.reduce_window(hidden, -np.inf, lax.max, window, window, "VALID")
    hidden = relu(hidden.reshape(len(images), -1) @ params["dense"])
    return hidden @ params["head"]


# As many channels as there are positions: the sizes do not tell the orders apart.
POOLED = draw(conv=(3, 3, 2, 4), conv_bias=(4,), dense=(16, 5), head=(5, 2))
IMAGES = inputs(2, 4, 4, 2)


def pooled_channels_first(params, images):
    """`pooled` with kernels `[out, in, ...]` and images `[B, C, H, W]`."""
    hidden = lax.conv_general_dilated(images, params["conv"], (1, 1), "SAME")
    hidden = relu(hidden + params["conv_bias"])
    window = (1, 1, 2, 2)
    hidden = lax.reduce_window(hidden, -np.inf, lax.max, window, window, "VALID")

    def dense(image):
        return params["head"] @ relu(params["dense"] @ image.reshape(-1))

    return jax.vmap(dense)(hidden)


POOLED_CHANNELS_FIRST = draw(
    conv=(4, 2, 3, 3), conv_bias=(4, 1, 1), dense=(5, 16), head=(2, 5)
)


def transformer(params, tokens):
    """One block with attention of two heads and kernels `[D, heads, D / heads]`."""
    stream = params["table"][tokens]
    query, key, value = (
        jnp.einsum("btd,dhe->bhte", stream, params[f"attention/{name}"])
        for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(query @ key.swapaxes(-1, -2))
    mixed = jnp.einsum("bhte,hed->btd", weights @ value, params["attention/out"])
    stream = stream + mixed
    hidden = jax.nn.gelu(stream @ params["up"] + params["up_bias"])
    stream = stream + hidden @ params["down"]
    return stream @ params["head"]


TRANSFORMER = draw(
    **{
        "table": (7, 4),
        "attention/query": (4, 2, 2),
        "attention/key": (4, 2, 2),
        "attention/value": (4, 2, 2),
        "attention/out": (2, 2, 4),
        "up": (4, 6),
        "up_bias": (6,),
        "down": (6, 4),
        "head": (4, 7),
    }
)
TOKENS = jnp.arange(10).reshape(2, 5) % 7

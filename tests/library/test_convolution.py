"""Convolution as patches and max-pooling by comparisons, against those of XLA."""

import chex
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax.networks import (
    ConvNet,
    convolution_named,
    max_pool,
    patches_convolution,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def value_and_gradients(function, *arguments):
    """Value, and gradients of its product with something that is not constant."""

    @jax.jit
    def run(*arguments):
        value, transpose = jax.vjp(function, *arguments)
        return value, transpose(jnp.sin(jnp.arange(value.size)).reshape(value.shape))

    return run(*arguments)


def assert_same(actual, wanted):
    chex.assert_trees_all_close(actual, wanted, rtol=0, atol=1e-12)


# Images, kernel, strides, padding and dilation.
CASES = {
    "of the paper's first layer": ((2, 32, 32, 3), (5, 5, 3, 4), (1, 1), "VALID", None),
    "odd sizes, few channels": ((2, 9, 8, 2), (3, 2, 2, 5), (1, 1), "VALID", None),
    "one output pixel": ((2, 5, 3, 1), (5, 3, 1, 2), (1, 1), "VALID", None),
    "many channels": ((2, 6, 7, 9), (3, 3, 9, 4), (1, 1), "VALID", None),
    "padded": ((2, 6, 7, 3), (3, 4, 3, 4), (1, 1), "SAME", None),
    "cropped": ((2, 6, 7, 8), (3, 3, 8, 4), (1, 1), ((-1, 2), (0, -2)), None),
    "strided": ((2, 9, 8, 3), (3, 3, 3, 4), (2, 3), "SAME", None),
    "dilated": ((2, 9, 8, 3), (3, 2, 3, 4), (2, 1), "VALID", (2, 3)),
    "a kernel of one pixel": ((2, 4, 5, 3), (1, 1, 3, 4), (1, 1), "VALID", (1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_lax(name):
    images, kernel, strides, padding, dilation = CASES[name]

    def run(convolution):
        return value_and_gradients(
            lambda images, kernel: convolution(
                images,
                kernel,
                strides,
                padding,
                rhs_dilation=dilation,
                dimension_numbers=LAYOUT,
            ),
            draw(*images),
            draw(*kernel, seed=1),
        )

    assert_same(run(patches_convolution), run(lax.conv_general_dilated))


def small_network(convolution):
    return ConvNet(
        num_outputs=3,
        activation="tanh",
        conv_channels=(4, 9),
        conv_sizes=(3, 2),
        dense_units=(5,),
        convolution=convolution,
    )


def test_a_network_has_the_same_gradients_under_vmap_and_scan():
    """Two lanes, three steps of gradient descent; 11 pixels leave 9, 4, 3, 1."""
    params = jax.tree.map(
        lambda leaf: 0.3 * draw(2, *leaf.shape),
        jax.eval_shape(
            small_network("xla").init, jax.random.key(0), draw(1, 11, 11, 2)
        ),
    )
    images = draw(3, 2, 4, 11, 11, 2)

    def train(convolution):
        network = small_network(convolution)

        def loss(params, images):
            outputs, features = network.apply(params, images)
            return jnp.sum(outputs**2), features

        def step(params, images):
            grads, features = jax.vmap(jax.grad(loss, has_aux=True))(params, images)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
            return params, (grads, features)

        return jax.jit(lambda params: lax.scan(step, params, images))(params)

    assert_same(train("patches"), train("xla"))


def test_patches_work_in_flax_and_differentiate_forward():
    images = draw(2, 6, 6, 3)
    layers = [
        nn.Conv(4, (3, 3), conv_general_dilated=convolution)
        for convolution in (patches_convolution, None)
    ]
    params = {"params": {"kernel": draw(3, 3, 3, 4), "bias": draw(4)}}
    tangents = [
        jax.jit(jax.jvp, static_argnums=0)(
            lambda images, layer=layer: layer.apply(params, images),
            (images,),
            (images,),
        )
        for layer in layers
    ]
    assert_same(*tangents)


def test_an_unknown_convolution_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"\['auto', 'patches', 'xla'\], got 'fft'"):
        convolution_named("fft")
    with pytest.raises(ValueError, match="got 'fft'"):
        jax.eval_shape(small_network("fft").init, jax.random.key(0), draw(1, 11, 11, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "NHWC"),
        ({"dimension_numbers": None}, "got dimension_numbers=None"),
        ({"feature_group_count": 3}, "got feature_group_count=3"),
        ({"batch_group_count": 2}, "batch_group_count=2"),
        ({"lhs_dilation": (1, 2)}, r"got lhs_dilation=\(1, 2\)"),
    ],
)
def test_what_patches_cannot_do_is_named(options, message):
    options = {"dimension_numbers": LAYOUT} | options
    with pytest.raises(ValueError, match=message):
        patches_convolution(
            draw(2, 6, 6, 3), draw(3, 3, 3, 4), (1, 1), "VALID", **options
        )
    with pytest.raises(ValueError, match=r"got shapes \(6, 6, 3\) and \(3, 3, 3, 4\)"):
        patches_convolution(draw(6, 6, 3), draw(3, 3, 3, 4), (1, 1), "VALID")


@pytest.mark.parametrize("window", [(2, 2), (3, 1)])
@pytest.mark.parametrize("pixels", [(6, 4), (7, 5)])
def test_pooling_is_that_of_flax_also_where_maxima_are_equal(window, pixels):
    """Integers from 0 to 2 tie in most windows, and many are 0 as behind a ReLU."""
    images = np.random.default_rng(0).integers(0, 3, (2, *pixels, 5)).astype(float)
    wanted = value_and_gradients(lambda x: nn.max_pool(x, window, window), images)
    assert_same(value_and_gradients(lambda x: max_pool(x, window), images), wanted)
    one = value_and_gradients(lambda x: max_pool(x, window), images[0])
    np.testing.assert_array_equal(one[0], wanted[0][0])

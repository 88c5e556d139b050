"""Eigenvalues of the Hessian and the tangent kernel, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_networks as nets

from cbp_jax import metrics

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

# Ten params, with a repeated eigenvalue, and the one of largest magnitude negative.
DIAGONAL = np.array([-5, -0.05, 0, 0, 0.05, 0.2, 2, 2, 2, 3], np.float32)


def diagonal_loss(params, diagonal, unused):
    """A quadratic form with a diagonal Hessian, of two leaves and a constant."""
    del unused
    vector = jnp.concatenate([params["a"].ravel(), params["b"]])
    return 0.5 * jnp.sum(diagonal * vector.astype(jnp.float32) ** 2)


def make_params(dtype=jnp.float32):
    return {"a": jnp.ones((2, 2), dtype), "b": jnp.ones(6, dtype), "count": 3}


@jax.jit
@jax.vmap
def measure(diagonal):
    arguments = diagonal_loss, make_params(), diagonal, None
    return (
        metrics.hessian_eigenvalues(*arguments),
        metrics.hessian_rank(*arguments),
        metrics.sharpness(*arguments),
    )


def test_a_diagonal_hessian_has_its_eigenvalues_also_repeated_ones():
    lanes = np.stack([DIAGONAL, -DIAGONAL, 0 * DIAGONAL, np.nan * DIAGONAL])
    values, rank, sharpness = measure(lanes)
    np.testing.assert_allclose(values[0], DIAGONAL, atol=1e-5)
    np.testing.assert_allclose(values[1], -DIAGONAL[::-1], atol=1e-5)
    np.testing.assert_allclose(values[2], 0, atol=1e-6)
    np.testing.assert_array_equal(values[3], np.nan)
    np.testing.assert_array_equal(rank, [6, 6, 0, np.nan])
    np.testing.assert_allclose(sharpness, [3, 5, 0, np.nan], rtol=1e-5)


def test_a_low_order_finds_the_outer_eigenvalues_in_float32():
    arguments = diagonal_loss, make_params(jnp.bfloat16), DIAGONAL, None
    find = functools.partial(metrics.hessian_eigenvalues, order=6)
    values = jax.jit(lambda: find(*arguments))()
    assert (values.shape, values.dtype) == ((6,), jnp.float32)
    np.testing.assert_allclose(values[jnp.array([0, -1])], [-5, 3], rtol=1e-2)
    # By interlacing, none is found more often than it occurs.
    assert (values < -0.1).sum() == 1
    assert (values > 0.1).sum() <= 5


def test_vectors_stay_orthogonal():
    """Without reorthogonalization the large eigenvalues would come again and again."""
    diagonal = 2.0 ** -np.arange(40.0).astype(np.float32)

    def loss_fn(params, inputs, targets):
        return 0.5 * jnp.sum(inputs * params**2)

    measure = functools.partial(metrics.hessian_eigenvalues, loss_fn, order=40)
    values = jax.jit(measure)(jnp.zeros(40), diagonal, 0)
    np.testing.assert_allclose(values, diagonal[::-1], atol=1e-6)


def chain_loss(params, inputs, targets):
    return jnp.mean((nets.chain(params, inputs) - targets) ** 2)


def test_the_hessian_is_that_of_a_network():
    inputs, targets = nets.inputs(8, 3), nets.inputs(8, 2, seed=2)
    vector, rebuild = jax.flatten_util.ravel_pytree(nets.CHAIN)
    arguments = chain_loss, nets.CHAIN, inputs, targets

    @jax.jit
    def measure():
        return (
            jax.hessian(lambda v: chain_loss(rebuild(v), inputs, targets))(vector),
            metrics.hessian_eigenvalues(*arguments, order=200, key=tiny.FAST_KEY),
            metrics.sharpness(*arguments),
        )

    hessian, found, sharpness = measure()
    exact = np.linalg.eigvalsh(np.asarray(hessian, float))
    np.testing.assert_allclose(found, exact, atol=1e-5 * exact[-1])
    np.testing.assert_allclose(sharpness, exact[-1], rtol=1e-4)


@pytest.mark.parametrize("measure", [metrics.hessian_rank, metrics.sharpness])
def test_no_step_is_an_error(measure):
    name = "order" if measure is metrics.hessian_rank else "num_iterations"
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        measure(diagonal_loss, make_params(), DIAGONAL, None, **{name: 0})


def linear(params, inputs):
    return {"outputs": inputs["x"] @ params["w"] + params["b"]}


def test_the_tangent_kernel_of_a_linear_network_is_the_gram_matrix_of_its_inputs():
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    wide = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
    kernel = jax.jit(jax.vmap(functools.partial(metrics.tangent_kernel, linear, wide)))
    found = kernel({"x": x})
    wanted = 3 * (x @ x.swapaxes(1, 2) + 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # Of four inputs and a bias, the six examples have a kernel of rank five.
    assert metrics.numerical_rank(found[0], 1e-3) == 5
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide)
    shape = jax.eval_shape(
        functools.partial(metrics.tangent_kernel, linear), narrow, {"x": x[0]}
    )
    assert (shape.shape, shape.dtype) == ((6, 6), jnp.float32)


def test_the_tangent_kernel_needs_examples():
    inputs = {"x": jnp.ones((6, 4)), "y": jnp.ones(5)}
    with pytest.raises(ValueError, match=r"\[\(6, 4\), \(5,\)\], expected \[examples"):
        metrics.tangent_kernel(linear, {}, inputs)


def test_the_tangent_kernel_is_the_product_of_jacobians():
    inputs = nets.inputs(5, 3)
    vector, rebuild = jax.flatten_util.ravel_pytree(nets.CHAIN)

    @jax.jit
    def measure():
        return (
            jax.jacrev(lambda v: nets.chain(rebuild(v), inputs))(vector),
            metrics.tangent_kernel(nets.chain, nets.CHAIN, inputs),
        )

    jacobian, found = measure()
    wanted = np.einsum("iop,jop->ij", jacobian, jacobian)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

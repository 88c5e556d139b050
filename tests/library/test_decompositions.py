"""Decompositions under `vmap` and differentiation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbp_jax import metrics
from cbp_jax.metrics import METHODS

MATRICES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 3)), "f4")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is for CPUs")
@pytest.mark.parametrize("method", METHODS)
def test_a_cpu_never_decomposes_a_batch_in_one_call(method):
    """A batch in one call hangs JAX 0.10 once it is large enough."""
    compiled = jax.jit(jax.vmap(METHODS[method])).lower(MATRICES).compile()
    calls = re.findall(r"= \(?\w+\[([\d,]*)\].*custom-call.*lapack", compiled.as_text())
    assert calls
    assert all(shape.count(",") == 1 for shape in calls), calls


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_those_of_the_singular_values(method):
    """By their definition: the slope of s_k along a change E is u_k' E v_k."""
    change = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5, 3)), "f4")
    _, slopes = jax.jvp(jax.vmap(METHODS[method]), (MATRICES,), (change,))
    left, _, right = np.linalg.svd(np.asarray(MATRICES, float), full_matrices=False)
    expected = np.einsum("bik,bij,bkj->bk", left, change, right)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3, atol=1e-4)


def test_an_effective_rank_can_be_a_loss():
    gradient = jax.jit(jax.vmap(jax.grad(metrics.effective_rank)))(MATRICES)
    after = jax.vmap(metrics.effective_rank)(MATRICES + 0.1 * gradient)
    assert (after > jax.vmap(metrics.effective_rank)(MATRICES)).all()

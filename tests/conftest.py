"""Runs the tests on the CPU, unless JAX_PLATFORMS names another platform."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(scope="module")
def strict_dtype_promotion():
    """Turns a silent conversion of dtypes into an error; optax.adam needs some."""
    with jax.numpy_dtype_promotion("strict"):
        yield

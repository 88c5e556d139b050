"""Settings of all tests: the CPU as four devices, if JAX_PLATFORMS names no other."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Compiles equal programs once, however often they are built."""
    folder = tmp_path_factory.mktemp("compilation_cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="module")
def strict_dtype_promotion():
    """Turns a silent conversion of dtypes into an error; optax.adam needs some."""
    with jax.numpy_dtype_promotion("strict"):
        yield

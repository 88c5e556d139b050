"""Settings of all tests: how they compile, four CPU devices, and no network.

Programs of tests are tiny and run once or twice, so that nearly all of the time goes
into compiling them. XLA is told to optimize little, which takes it less than half of
it; `full_optimization.py` is for tests of what its optimizations could break.
"""

import gc
import os
import platform
import shutil
import socket

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxlib.version
import pytest

# XLA's older code generator for fused loops compiles twice as fast. Only jaxlib 0.10 is
# sure to have it, and one without it ends the process at the flag.
if jaxlib.version.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = " ".join(
        (os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false")
    )

# JAX keeps millions of objects, through which Python would look again and again.
gc.set_threshold(100_000, 50, 100)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)

_MOST_BYTES = 500e6
_LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()}


def pytest_configure(config):
    """Lets all workers, and later runs, share what has been compiled."""
    if not hasattr(config, "cache"):  # With `-p no:cacheprovider`.
        return
    # Programs are for one kind of processor.
    folder = config.cache.mkdir(f"compiled-{platform.node()}")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        sizes = [path.stat().st_size for path in folder.iterdir()]
        if sum(sizes) > _MOST_BYTES:
            shutil.rmtree(folder)
            folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    """Fails a test that looks for another host, unless it is marked as slow."""
    if request.node.get_closest_marker("slow"):
        return
    connect, find = socket.socket.connect, socket.getaddrinfo

    def connect_locally(self, address):
        if isinstance(address, tuple) and address[0] not in _LOCAL_HOSTS:
            pytest.fail(f"The test connects to {address}. Fake what it wants there.")
        return connect(self, address)

    def find_locally(host, *args, **kwargs):
        if host not in _LOCAL_HOSTS:
            pytest.fail(f"The test looks for the host {host!r}. Fake what it wants.")
        return find(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    monkeypatch.setattr(socket, "getaddrinfo", find_locally)


@pytest.fixture
def _full_optimization():
    """Optimizes programs as in use: those that run for long, or must not differ."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def strict_dtype_promotion():
    """Turns a silent conversion of dtypes into an error; optax.adam needs some."""
    with jax.numpy_dtype_promotion("strict"):
        yield

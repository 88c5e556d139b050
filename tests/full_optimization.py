"""Programs as they are in use, for tests of what XLA's optimizations could break.

All other programs of the tests are compiled fast, see `conftest.py`.
"""

import functools

import jax
import jaxlib.version

_OPTIONS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if jaxlib.version.__version_info__[:2] == (0, 10):  # As in `conftest.py`.
    _OPTIONS["xla_cpu_use_fusion_emitters"] = True

full_jit = functools.partial(jax.jit, compiler_options=_OPTIONS)

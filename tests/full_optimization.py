"""Programs as they are in use, for tests of what XLA's optimizations could break.

All other programs of the tests are compiled fast, see `conftest.py`.
"""

import functools

import jax

full_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
    },
)

"""Runs the tests on the CPU, unless JAX_PLATFORMS names another platform."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

"""Runs experiments: config, cases, lanes, devices, checkpoints, command line."""

from experiments.run.from_python import run_config

__all__ = ["run_config"]

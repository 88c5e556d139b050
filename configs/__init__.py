"""Configs of the experiments: one file for each problem, one preset for each run."""

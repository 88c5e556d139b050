"""The fields that the configs of all problems share, and how presets become configs.

The hyperparameters of methods and optimizers, their published values and their ranges
are declared with these, in experiments/learning/methods.py and base_optimizers.py; a
config has those that its cases take.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.run.config import complete

_LEARNER = {
    "method": "continual_backprop",  # A name in experiments/learning/methods.py.
    "optimizer": "sgd",  # A name in experiments/learning/base_optimizers.py.
    "noise": "normal",  # Distribution of noise_scale; "signs" are much cheaper.
    "hidden_layers": 1,  # 0 for a linear model.
    "hidden_units": 100,
    "activation": "relu",  # Of cbp_jax.networks.ACTIVATIONS, ACTIVATION_LAYERS.
    "normalization": "none",  # Or a name in cbp_jax.layers.NORMALIZATIONS.
    "batch_size": 1,  # Examples per update.
}

# Lanes: seeds x sweep x trials of the search, for each case.
_LANES = {
    "num_seeds": 30,
    "first_seed": 0,
    "cases": {
        "backprop": {"method": "backprop"},
        "continual_backprop": {"method": "continual_backprop"},
    },
    "sweep": {},  # Values of hyperparameters, for all cases that take them.
    "search": {},  # Ranges of hyperparameters, (low, high), likewise.
    "num_trials": 16,  # Points of a search.
    "lanes_per_block": 0,  # Lanes vmapped together on a device; 0 for automatic.
    "timed_task": {  # Overrides for the short task that is timed to choose it.
        "examples_per_task": 300,
        "measured_examples": 100,
        "rank_every": 0,
        "probe_every": 0,
    },
}

_OUTPUT = {
    "measured_examples": 2000,  # First examples of a task, used to measure features.
    "rank_every": 1,  # Tasks between measurements of the ranks; 0 for never.
    "rank_method": "gram",  # Or "svd"; see cbp_jax.metrics.singular_values.
    "probe_every": 0,  # Tasks from one probe to the next; 0 for never.
    "probe_measures": (  # Groups in experiments/learning/probes.py.
        *("aged_against_fresh", "readiness", "layers"),
    ),
    "probe_examples": 200,  # First examples of a task, used by a probe.
    "probe_updates": 100,  # Of the copies that a probe trains.
    "replacement_log": 0,  # Replacements logged per lane and task; 0 for no log.
    "tensorboard": False,  # Also write TensorBoard event files.
    "wandb": False,  # Also log to Weights & Biases.
    "checkpoint_every": 10,  # Tasks.
    "checkpoint_seconds": 20,  # Also save if a task ends this long after the last save.
}


def make_config(
    preset: str, presets: Mapping[str, Any], problem: Mapping[str, Any]
) -> ConfigDict:
    """Builds the config of a preset.

    Args:
      preset: name of the preset.
      presets: for each preset, its overrides of the problem's fields.
      problem: fields of the problem, and overrides of the shared fields.

    Returns:
      The config, with all hyperparameters that its cases take. It accepts new cases,
      sweeps and searches, but no other new fields, so that a misspelled field is an
      error.

    Raises:
      ValueError: unknown preset.
    """
    if preset not in presets:
        raise ValueError(f"Unknown preset {preset!r}; choose from {list(presets)}.")
    fields = _LEARNER | _LANES | _OUTPUT | dict(problem) | dict(presets[preset])
    config = complete(ConfigDict(fields | {"preset": preset})).lock()
    config.cases.unlock()
    config.sweep.unlock()
    config.search.unlock()
    return config

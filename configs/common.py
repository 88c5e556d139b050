"""The fields that every problem's config has: learner, lanes, and what is kept.

A new hyper-parameter is declared in experiments/learning/hyper_parameters.py and gets
its field here.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.learning.hyper_parameters import HYPER_PARAMETERS


def add_learner(config: ConfigDict) -> None:
    """Adds the method with its hyper-parameters, and the network."""
    config.method = "continual_backprop"  # Or "backprop".
    config.optimizer = "sgd"  # Or "adam".
    config.step_size = 0.01
    config.momentum = 0.0
    config.b1 = 0.9  # Of Adam, like b2.
    config.b2 = 0.999
    config.weight_decay = 0.0  # L2 on all parameters, added to the gradient.
    config.noise_scale = 0.0  # Of N(0, scale**2) added to all parameters.
    config.dropout_rate = 0.0
    config.replacement_rate = 1e-4
    config.decay_rate = 0.99
    config.maturity_threshold = 100
    config.hidden_layers = 1  # 0 for a linear model.
    config.hidden_units = 100
    config.activation = "relu"  # A name in cbp_jax.networks.ACTIVATIONS.


def add_lanes(config: ConfigDict) -> None:
    """Adds the lanes: seeds x sweep, for each case."""
    config.num_seeds = 30
    config.first_seed = 0
    config.sweep = dict.fromkeys(HYPER_PARAMETERS, ())  # Values to combine.
    config.cases = {
        "backprop": {"method": "backprop"},
        "continual_backprop": {"method": "continual_backprop"},
    }
    config.lanes_per_block = 0  # Lanes vmapped together on a device; 0 chooses.
    config.probe = {  # Overrides of the short task that is timed to choose it.
        "examples_per_task": 300,
        "measured_examples": 100,
        "rank_every": 0,
    }


def add_output(config: ConfigDict) -> None:
    """Adds what is measured and kept."""
    config.measured_examples = 2000  # First ones of a task, for dead units and ranks.
    config.rank_every = 1  # Tasks between measurements of the ranks; 0 for never.
    config.rank_method = "gram"  # Or "svd", see cbp_jax.metrics.singular_values.
    config.replacement_log = 0  # Replacements logged per lane and task; 0 for no log.
    config.tensorboard = False  # Write TensorBoard event files, too.
    config.checkpoint_every = 10  # Tasks.


def override(config: ConfigDict, preset: str, presets: Mapping[str, Any]) -> ConfigDict:
    """Applies the fields of a preset, and names the config after it.

    Raises:
      ValueError: unknown preset.
    """
    if preset not in presets:
        raise ValueError(f"Unknown preset {preset!r}; choose from {list(presets)}.")
    config.preset = preset
    for field, value in presets[preset].items():
        if field == "sweep":
            config.sweep.update(value)
        else:
            config[field] = value
    return config

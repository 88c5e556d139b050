"""Slowly-Changing Regression."""

from ml_collections import ConfigDict

from experiments.lanes import HYPER_PARAMETERS


def get_config(preset: str = "default") -> ConfigDict:
    """Returns the config of a preset.

    Raises:
      ValueError: unknown preset.
    """
    if preset not in _PRESETS:
        raise ValueError(f"Unknown preset {preset!r}; choose from {list(_PRESETS)}.")
    config = ConfigDict()
    config.preset = preset

    # The stream.
    config.num_tasks = 75  # Bins to average over.
    config.examples_per_task = 40_000
    config.num_bits = 21  # The last of them is always 1.
    config.slow_bits = 15
    config.drift = "one"  # Slow bits that change, "one" or "all" of them redrawn.
    config.drift_every = 10_000  # Examples.
    config.target_units = 100
    config.target_beta = 0.7  # Share of bits that makes a unit of the target fire.

    # The learner.
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
    config.hidden_units = 5
    config.activation = "relu"

    # Lanes: seeds x sweep, for each case.
    config.num_seeds = 100
    config.first_seed = 0
    config.sweep = dict.fromkeys(HYPER_PARAMETERS, ())  # Values to combine.
    config.cases = {
        "backprop": {"method": "backprop"},
        "continual_backprop": {"method": "continual_backprop"},
    }
    config.lanes_per_block = 1000  # Lanes vmapped together on a device; 0 chooses.
    config.probe = {  # Overrides of the short task that is timed to choose it.
        "examples_per_task": 2000,
        "measured_examples": 100,
        "rank_every": 0,
    }

    # What is measured and kept.
    config.measured_examples = 2000  # First ones of a bin, for dead units and ranks.
    config.rank_every = 1  # Tasks between measurements of the ranks; 0 for never.
    config.rank_method = "gram"  # Or "svd", see cbp_jax.metrics.singular_values.
    config.replacement_log = 0  # Replacements logged per lane and task; 0 for no log.
    config.tensorboard = False  # Write TensorBoard event files, too.
    config.checkpoint_every = 10  # Tasks.

    for field, value in _PRESETS[preset].items():
        if field == "sweep":
            config.sweep.update(value)
        else:
            config[field] = value
    return config


_LINEAR = {"linear": {"method": "backprop", "hidden_layers": 0}}
_STEP_SIZES = {"step_size": (0.01, 0.003, 0.001)}


def _backprop(*activations: str) -> dict[str, dict[str, object]]:
    cases = {name: {"method": "backprop", "activation": name} for name in activations}
    return cases | _LINEAR


_PRESETS = {
    "default": {},
    "figure_b10": {"sweep": _STEP_SIZES, "cases": _backprop("relu","tanh","sigmoid","leaky_relu","elu","swish")},
    "all_bits": {"drift": "all", "examples_per_task": 20_000, "num_tasks": 50, "sweep": _STEP_SIZES, "cases": _backprop("relu", "tanh")},
}

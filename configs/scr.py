"""Slowly-Changing Regression: tracking a target while its inputs drift.

Reproduces figure B.10 of Dohare et al., "Loss of plasticity in deep continual
learning", arXiv:2306.13812 (Nature 632, 2024), and the variant of its released code.

    python -m experiments.slowly_changing_regression --config=configs/scr.py[:PRESET]

| preset     | learners                       | examples | seeds | two cores |
|------------|--------------------------------|----------|-------|-----------|
| (none)     | ReLU, tanh, both methods       | 3 M      | 30    | 2 min     |
| figure_b10 | 6 activations, 3 steps, linear | 3 M      | 100   | 10 min    |
| cbp        | ReLU, tanh, 6 rates            | 3 M      | 100   | 10 min    |
| adam       | as figure_b10, with Adam       | 3 M      | 100   | 17 min    |
| all_bits   | ReLU, tanh, 3 steps, linear    | 1 M      | 100   | 2 min     |
| methods    | ReLU, every method             | 1 M      | 30    | 30 min    |
| comparison | ReLU, all methods, 3 values    | 1 M      | 35    | 12 min    |
| search     | ReLU, every method, 16 trials  | 1 M      | 3     | not timed |
| smoke      | as the default                 | 400      | 2     | seconds   |

Expected squared error from the first to the last bin, at step size 0.01 and with the
default preset: with backprop, 0.6 to 1.1 for ReLU and 0.35 to 0.9 for tanh; with
continual backprop, 0.5 to 0.45 and 0.35 to 0.35. A linear model stays at 0.8 to 0.9.
docs/results has the tables of all presets, with the paper's values.
"""

from ml_collections import ConfigDict

from configs import common
from configs.methods import (
    batch_methods,
    newer_methods,
    paper_methods,
    with_search,
    with_values_to_try,
)


def get_config(preset: str = "default") -> ConfigDict:
    """Returns the config of a preset.

    Raises:
      ValueError: unknown preset.
    """
    return common.make_config(preset, _PRESETS, _PROBLEM)


_PROBLEM = {
    "num_tasks": 75,  # A task is a bin of examples to average over.
    "examples_per_task": 40_000,
    "num_bits": 21,  # The last of them is always 1.
    "slow_bits": 15,
    "drift": "one",  # "one" slow bit flips, or "all" are redrawn.
    "drift_every": 10_000,  # Examples.
    "target_units": 100,
    "target_beta": 0.7,  # Fraction of bits that makes a unit of the target fire.
    "hidden_units": 5,
    "num_seeds": 100,
    "lanes_per_block": 1000,  # Many, because the networks are tiny.
    "timed_task": {
        "examples_per_task": 2000,
        "measured_examples": 100,
        "rank_every": 0,
        "probe_every": 0,
    },
}

_LINEAR = {"linear": {"method": "backprop", "hidden_layers": 0}}
_ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish")
_STEP_SIZES = {"step_size": (0.01, 0.003, 0.001)}


def _one_method(method: str, *activations: str) -> dict[str, dict[str, object]]:
    return {name: {"method": method, "activation": name} for name in activations}


def _both_methods(*activations: str) -> dict[str, dict[str, object]]:
    return {
        f"{method}_{name}": {"method": method, "activation": name}
        for method in ("backprop", "continual_backprop")
        for name in activations
    }


_DEFAULT = {"num_seeds": 30, "cases": _both_methods("relu", "tanh")}
_FIGURE_B10 = {
    "sweep": _STEP_SIZES,
    "cases": _one_method("backprop", *_ACTIVATIONS) | _LINEAR,
}

_PRESETS = {
    "default": _DEFAULT,
    "figure_b10": _FIGURE_B10,
    "cbp": {
        # Rate 0 is backprop.
        "sweep": {"replacement_rate": (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)},
        "cases": _one_method("continual_backprop", "relu", "tanh"),
    },
    "adam": _FIGURE_B10 | {"optimizer": "adam"},
    "all_bits": {
        "drift": "all",
        "num_tasks": 50,
        "examples_per_task": 20_000,
        "sweep": _STEP_SIZES,
        "cases": _one_method("backprop", "relu", "tanh") | _LINEAR,
    },
    "methods": {
        "num_tasks": 25,
        "num_seeds": 30,
        "noise": "signs",
        "cases": _LINEAR
        | paper_methods(adam_step_size=0.01)
        | batch_methods(batch_size=10, step_size=0.03)
        | newer_methods(adam_step_size=0.01),
    },
    "comparison": {
        "num_tasks": 25,
        "num_seeds": 35,
        "noise": "signs",
        "cases": with_values_to_try(
            _LINEAR
            | paper_methods(adam_step_size=0.01)
            | newer_methods(adam_step_size=0.01),
            step_sizes=_STEP_SIZES["step_size"],
            adam_step_sizes=_STEP_SIZES["step_size"],
        ),
    },
    "search": {
        "num_tasks": 25,
        "num_seeds": 3,  # To choose; `experiments.compare --evaluate` runs others.
        "num_trials": 16,
        "noise": "signs",
        "cases": with_search(
            _LINEAR
            | paper_methods(adam_step_size=0.01)
            | newer_methods(adam_step_size=0.01),
            step_sizes=(2e-4, 0.1),
            adam_step_sizes=(1e-4, 0.1),
        ),
    },
    "smoke": _DEFAULT
    | {
        "num_seeds": 2,
        "num_tasks": 2,
        "examples_per_task": 200,
        "drift_every": 50,
        "measured_examples": 100,
    },
}

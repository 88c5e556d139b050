"""Continual ImageNet: distinguishing pairs of image classes, one pair after another.

Reproduces figure 1 of Dohare et al., "Loss of plasticity in deep continual learning",
Nature 632, 2024, with the settings of its released code.

    python -m experiments.continual_imagenet --config=configs/imagenet.py[:PRESET]

| preset   | images          | network | tasks x epochs | seeds | shows            |
|----------|-----------------|---------|----------------|-------|------------------|
| (none)   | textures, 16x16 | small   | 150 x 10       | 5     | the effect, fast |
| paper    | ImageNet, 32x32 | paper's | 5,000 x 250    | 30    | the main result  |
| cifar100 | CIFAR-100       | paper's | 300 x 10       | 3     | real images      |
| methods  | textures, 16x16 | small   | 150 x 10       | 5     | every method     |
| search   | textures, 16x16 | small   | 100 x 10       | 3     | all, 16 trials   |
| smoke    | textures, 12x12 | tiny    | 2 x 1          | 2     | that it runs     |

Textures are drawn from the seed, so the default downloads nothing.
"""

from typing import Any

from ml_collections import ConfigDict

from cbp_jax.networks import PAIRED
from configs import common
from configs.methods import newer_methods, paper_methods, with_search
from experiments.learning.methods import METHODS


def get_config(preset: str = "default") -> ConfigDict:
    """Returns the config of a preset.

    Raises:
      ValueError: unknown preset.
    """
    return common.make_config(preset, _PRESETS, _PROBLEM)


_BACKPROP = {"backprop": {"method": "backprop"}}
_CONTINUAL_BACKPROP = {"continual_backprop": {"method": "continual_backprop"}}
# A linear model that learns each task from scratch.
_LINEAR = {
    "linear": {
        "method": "full_reset",
        "conv_channels": (),
        "conv_sizes": (),
        "hidden_layers": 0,
    }
}

_PROBLEM = {
    "dataset": "class_files",  # Or a name in experiments/streams/class_pairs.py.
    "data_dir": "",  # Folder of the class files or TFDS sets; "" for that of TFDS.
    "num_classes": 0,  # Classes for pairs; 0 for all; textures then are always new.
    "train_per_class": 600,  # Images.
    "test_per_class": 100,  # Images.
    "texture_pixels": 32,  # Height and width of textures.
    "num_tasks": 2000,
    "num_epochs": 250,
    "batch_size": 100,
    "conv_channels": (32, 64, 128),
    "conv_sizes": (5, 3, 3),  # Height and width of the kernels.
    "convolution": "auto",  # Or a name in cbp_jax.networks.CONVOLUTIONS.
    "hidden_layers": 2,  # Dense layers after the convolutions.
    "hidden_units": 128,  # Units per dense layer.
    "step_size": 0.01,
    "momentum": 0.9,
    "replacement_rate": 3e-4,
    "reset_head_optimizer_state": False,  # When a task resets the head's weights.
    "test_every_epoch": False,  # True tests after each epoch, not only the last.
    "tasks_per_bin": 50,  # For the table and figure of accuracy.
    "measured_examples": 1000,
    "probe_examples": 1000,
    "cases": _BACKPROP | _CONTINUAL_BACKPROP | _LINEAR,
    "timed_task": {"num_epochs": 1, "rank_every": 0, "probe_every": 0},
}

_TEXTURES = {
    "dataset": "textures",
    "train_per_class": 100,
    "texture_pixels": 16,
    "num_tasks": 150,
    "num_epochs": 10,
    "batch_size": 20,
    "conv_channels": (8, 16),
    "conv_sizes": (5, 3),
    "hidden_layers": 1,
    "hidden_units": 32,
    "step_size": 0.07,
    "replacement_rate": 0.01,
    "num_seeds": 5,
    "tasks_per_bin": 10,
    "measured_examples": 200,
    "probe_examples": 200,
}
# Methods that are themselves optimizers have no momentum, which makes steps in a
# constant direction 1 / (1 - momentum) = 10 times as large. They get 10 times the step
# size instead, unless their steps are like Adam's.
_WITHOUT_MOMENTUM = {"momentum": 0.0, "step_size": 0.7}
# The features of a batch say more than that of an example: L2-ER takes fewer batches.
_BATCHES = {"l2_er": {"er_every": 12}}
# The convolutional network does not support activations with two outputs per unit.
_NEWER_METHODS = {
    name: case
    | (_WITHOUT_MOMENTUM if METHODS[case["method"]].replaces_optimizer else {})
    | _BATCHES.get(name, {})
    for name, case in newer_methods(adam_step_size=0.003).items()
    if case.get("activation") not in PAIRED
}
_METHODS = (
    paper_methods(adam_step_size=0.003)
    | {"batch_norm": {"method": "backprop", "normalization": "batch"}}
    | _NEWER_METHODS
)


def _searches() -> dict[str, dict[str, Any]]:
    cases = with_search(_METHODS, step_sizes=(0.003, 0.3), adam_step_sizes=(1e-4, 0.03))
    for case in cases.values():
        method = METHODS[case["method"]]
        if method.replaces_optimizer and not method.steps_like_adam:
            case["search"]["step_size"] = (0.03, 3.0)  # Without momentum, as above.
        if "replacement_rate" in case["search"]:  # Batches see few updates per task.
            case["search"]["replacement_rate"] = (1e-5, 0.1)
    return cases


_PRESETS = {
    "default": _TEXTURES,
    "paper": {
        "cases": {
            "backprop": {
                "method": "backprop",
                "num_tasks": 2000,
                "sweep": {"step_size": (0.01, 0.001, 0.0001)},
            },
            "l2": {"method": "backprop", "step_size": 0.03, "weight_decay": 3e-6},
            "shrink_and_perturb": {
                "method": "backprop",
                "weight_decay": 1e-5,
                "noise_scale": 1e-5,
            },
        }
        | _CONTINUAL_BACKPROP
        | _LINEAR,
        "num_tasks": 5000,
    },
    "cifar100": {
        "dataset": "cifar100",
        "train_per_class": 500,
        "num_tasks": 300,
        "num_epochs": 10,
        "num_seeds": 3,
        "tasks_per_bin": 10,
    },
    "methods": _TEXTURES | {"cases": _METHODS | _LINEAR},
    "search": _TEXTURES
    | {
        "num_tasks": 100,
        "num_seeds": 3,  # To choose; `experiments.compare --evaluate` runs others.
        "num_trials": 16,
        "noise": "signs",
        "cases": _searches(),
    },
    "smoke": _TEXTURES
    | {
        "train_per_class": 4,
        "test_per_class": 3,
        "texture_pixels": 12,
        "num_tasks": 2,
        "num_epochs": 1,
        "batch_size": 4,
        "conv_channels": (3, 4),
        "hidden_units": 5,
        "measured_examples": 8,
        "probe_examples": 8,
        "num_seeds": 2,
    },
}

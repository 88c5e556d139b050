"""Changing Labels: the same images, whose labels change from task to task.

    python -m experiments.changing_labels --config=configs/labels.py[:PRESET]

| preset         | labels   | images          | network   | tasks x examples | seeds |
|----------------|----------|-----------------|-----------|------------------|-------|
| (none)         | random   | 400 digits      | 2 x 50    | 30 x 20,000      | 10    |
| l2_init_random | random   | 1,200 of MNIST  | 2 x 100   | 50 x 480,000     | 10    |
| upgd_permuted  | permuted | EMNIST, 47      | 300 + 150 | 400 x 2,500      | 20    |
| methods        | random   | 400 digits      | 2 x 50    | 30 x 20,000      | 10    |
| comparison     | random   | 400 digits      | 2 x 50    | 30 x 20,000      | 13    |
| search         | random   | 400 digits      | 2 x 50    | 30 x 20,000      | 3     |
| smoke          | permuted | 20 digits       | 1 x 5     | 2 x 40           | 2     |

Random labels can only be memorized. `accuracy`, which is online, therefore begins each
task at chance, and `train_accuracy` is the fraction memorized at its end. Permuted
labels ask for other outputs for the same classes. Ten classes show little loss of
plasticity then: use a data set with more.

Expected accuracy with the default preset, from the first to the last task: 42 % to 12 %
for backprop, 42 % to 63 % for continual backprop.

`l2_init_random` follows Kumar et al., "Maintaining plasticity in continual learning via
regenerative regularization", arXiv:2308.11958: 400 epochs per task in batches of 16.
`upgd_permuted` follows Elsayed and Mahmood, "Addressing loss of plasticity and
catastrophic forgetting in continual learning", arXiv:2404.00781: a million single
examples of EMNIST's 47 classes.

MNIST is read from its four IDX files in `--config.data_dir=FOLDER`, or from TensorFlow
Datasets, as are EMNIST and CIFAR-100, whose labels are its 100 classes
(`--config.dataset=cifar100`) or its 20 (`cifar100_coarse`). `--config.dataset=textures`
draws `texture_classes` of them; set `conv_channels` and `conv_sizes` for a
convolutional network, without which they are hard to tell apart.
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
    "labels": "random",  # Or "permuted": the classes exchange their names.
    "dataset": "digits",  # A name in experiments/streams/changing_labels.py.
    "data_dir": "",  # Folder of the data set; "" for that of TFDS.
    "num_images": 1200,  # Training images of a seed; 0 for all but the test images.
    "num_test_images": 0,  # Test images of a seed, for permuted labels.
    "texture_classes": 50,
    "texture_pixels": 16,  # Height and width of textures.
    "num_tasks": 30,
    "examples_per_task": 20_000,  # An epoch is num_images of them.
    "sampling": "without_replacement",  # Or "with_replacement".
    "change_fraction": 1.0,  # Share of the images, or classes, that change in a task.
    "transition": 0,  # Examples over which a task fades in.
    "recurrent": 0,  # Number of tasks that recur; 0 for tasks that are always new.
    "conv_channels": (),  # () for an MLP.
    "conv_sizes": (),  # Height and width of the kernels.
    "convolution": "auto",  # Or a name in cbp_jax.networks.CONVOLUTIONS.
    "hidden_layers": 2,
    "hidden_units": 50,
    "step_size": 0.01,
    "replacement_rate": 1e-4,
    "measured_examples": 400,
    "timed_task": {
        "examples_per_task": 300,
        "measured_examples": 100,
        "rank_every": 0,
        "probe_every": 0,
        "transition": 0,
    },
}

_DIGITS = {"num_images": 400, "num_seeds": 10}
_ALL = paper_methods(adam_step_size=0.001) | newer_methods(adam_step_size=0.001)


def _some(*names: str) -> dict[str, dict[str, object]]:
    return {name: dict(_ALL[name]) for name in names}


_PRESETS = {
    "default": _DIGITS,
    "l2_init_random": {
        "dataset": "mnist",
        "num_tasks": 50,
        "examples_per_task": 480_000,
        "batch_size": 16,
        "hidden_units": 100,
        "num_seeds": 10,
        "measured_examples": 1200,
        "cases": _some(
            *("backprop", "l2_init", "continual_backprop", "adam", "layer_norm")
        ),
    },
    "upgd_permuted": {
        "labels": "permuted",
        "dataset": "emnist/balanced",
        "num_images": 0,
        "num_tasks": 400,
        "examples_per_task": 2500,
        "hidden_units": (300, 150),
        "num_seeds": 20,
        "measured_examples": 1000,
        "cases": _some("backprop", "upgd", "continual_backprop"),
    },
    "methods": _DIGITS
    | {
        "cases": _ALL | batch_methods(batch_size=10, step_size=0.1),
    },
    "comparison": _DIGITS
    | {
        "num_seeds": 13,
        "noise": "signs",
        "cases": with_values_to_try(
            _ALL,
            step_sizes=(0.03, 0.01, 0.003),
            adam_step_sizes=(3e-3, 1e-3, 3e-4),
        ),
    },
    "search": _DIGITS
    | {
        "num_seeds": 3,  # To choose; `experiments.compare --evaluate` runs others.
        "num_trials": 16,
        "noise": "signs",
        "cases": with_search(
            paper_methods(adam_step_size=0.001) | newer_methods(adam_step_size=0.001),
            step_sizes=(1e-3, 0.1),
            adam_step_sizes=(1e-5, 1e-2),
        ),
    },
    "smoke": {
        "labels": "permuted",
        "num_images": 20,
        "num_test_images": 10,
        "num_tasks": 2,
        "examples_per_task": 40,
        "probe_examples": 20,
        "hidden_layers": 1,
        "hidden_units": 5,
        "measured_examples": 20,
        "num_seeds": 2,
    },
}

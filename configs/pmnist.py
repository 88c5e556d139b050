"""Online Permuted MNIST: backprop loses its plasticity, continual backprop keeps it.

Reproduces figure 2 (top) of Dohare et al., "Loss of plasticity in deep continual
learning", Nature 632, 2024, and figures 6 to 8 of its preprint arXiv:2306.13812.

    python -m experiments.permuted_mnist --config=configs/pmnist.py[:PRESET]

| preset | data   | network            | tasks x examples | seeds | shows              |
|--------|--------|--------------------|------------------|-------|--------------------|
| (none) | digits | 3 x 50             | 60 x 5,000       | 10    | the effect, fast   |
| small  | MNIST  | 3 x 100            | 150 x 60,000     | 10    | a narrow network   |
| paper  | MNIST  | 3 x 2,000          | 800 x 60,000     | 30    | the main result    |
| width  | MNIST  | 3 x 100 ... 10,000 | 150 x 60,000     | 30    | the width study    |
| rate   | MNIST  | 3 x 2,000          | 48 M in all      | 30    | the rate of change |
| smoke  | digits | 3 x 10             | 2 x 200          | 2     | that it runs       |

Digits are the 1,797 images of 8x8 pixels inside scikit-learn, so the default gives the
same numbers on every machine and downloads nothing. MNIST is read from its four IDX
files in `--config.data_dir=FOLDER`, or from TensorFlow Datasets.

Expected accuracy in the last task: by default, backprop 51.1 +- 5.5 % and continual
backprop 85.1 +- 0.9 %, in 40 seconds on two cores. `small` cut to 31 tasks and 3 seeds,
backprop 90.3 %, continual backprop 92.8 %, in 13 minutes (README.md has both tables).
`paper`, by the paper's figure, backprop 93.7 % and continual backprop about 95 %: 2.9
billion updates of 10 million weights, which only an accelerator finishes.
"""

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
    config.dataset = "mnist"  # A name in experiments/datasets.py.
    config.data_dir = ""  # Folder of the data set; "" for that of TFDS.
    config.num_tasks = 800
    config.examples_per_task = 60_000
    config.sampling = "without_replacement"  # Or "with_replacement".

    # The learner.
    config.method = "continual_backprop"  # Or "backprop".
    config.optimizer = "sgd"  # Or "adam".
    config.step_size = 0.003
    config.momentum = 0.0
    config.b1 = 0.9  # Of Adam, like b2.
    config.b2 = 0.999
    config.weight_decay = 0.0  # L2 on all parameters, added to the gradient.
    config.noise_scale = 0.0  # Of N(0, scale**2) added to all parameters.
    config.dropout_rate = 0.0
    config.replacement_rate = 1e-6
    config.decay_rate = 0.99
    config.maturity_threshold = 100
    config.hidden_layers = 3
    config.hidden_units = 2000
    config.activation = "relu"

    # Lanes: seeds x sweep, for each case.
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

    # What is measured and kept.
    config.measured_examples = 2000  # Of the new task, for dead units and ranks.
    config.rank_every = 1  # Tasks between measurements of the ranks; 0 for never.
    config.rank_method = "gram"  # Or "svd", see cbp_jax.metrics.singular_values.
    config.replacement_log = 0  # Replacements logged per lane and task; 0 for no log.
    config.tensorboard = False  # Write TensorBoard event files, too.
    config.checkpoint_every = 10  # Tasks.

    for field, value in _PRESETS[preset].items():
        config[field] = value
    return config


def _widths(*widths: int) -> dict[str, dict[str, object]]:
    return {
        f"{method}_{width}": {"method": method, "hidden_units": width}
        for method in ("backprop", "continual_backprop")
        for width in widths
    }


def _change_every(total: int, *examples: int) -> dict[str, dict[str, object]]:
    return {
        f"{method}_{number}": {
            "method": method,
            "examples_per_task": number,
            "num_tasks": total // number,
            "rank_every": max(1, 1_000_000 // number),
        }
        for method in ("backprop", "continual_backprop")
        for number in examples
    }


_DIGITS = {
    "dataset": "digits",
    "sampling": "with_replacement",
    "hidden_units": 50,
    "num_tasks": 60,
    "examples_per_task": 5000,
    "step_size": 0.03,
    "replacement_rate": 1e-4,
    "num_seeds": 10,
}

_PRESETS = {
    "default": _DIGITS,
    "paper": {},
    "small": {
        "hidden_units": 100,
        "num_tasks": 150,
        "num_seeds": 10,
        "replacement_rate": 1e-4,
    },
    "width": {"num_tasks": 150, "cases": _widths(100, 1000, 10_000)},
    "rate": {"cases": _change_every(48_000_000, 10_000, 100_000, 1_000_000)},
    "smoke": _DIGITS
    | {
        "hidden_units": 10,
        "num_tasks": 2,
        "examples_per_task": 200,
        "measured_examples": 100,
        "num_seeds": 2,
    },
}

"""Changing Labels."""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "default") -> ConfigDict:
    return common.make_config(preset, _PRESETS, _PROBLEM)


_PROBLEM = {
    "labels": "random",  # Or "permuted", the names of the classes.
    "dataset": "digits",  # A name in experiments/streams/changing_labels.py.
    "data_dir": "",  # Folder of the data set; "" for that of TFDS.
    "num_images": 1200,  # Training images of a seed; 0 for all others.
    "num_test_images": 0,  # Test images of a seed, for permuted labels.
    "texture_classes": 50,  # Classes of textures.
    "texture_pixels": 16,  # Height and width of textures.
    "num_tasks": 50,
    "examples_per_task": 30_000,
    "sampling": "without_replacement",  # Or "with_replacement".
    "change_fraction": 1.0,  # Share of the images, or classes, that change in a task.
    "transition": 0,  # Examples over which a task fades in.
    "recurrent": 0,  # Tasks that recur; 0 for tasks that are always new.
    "conv_channels": (),  # () for an MLP.
    "conv_sizes": (),  # Height and width of the kernels.
    "convolution": "auto",  # Or a name in cbp_jax.networks.CONVOLUTIONS.
    "hidden_layers": 2,
    "hidden_units": 100,
    "step_size": 0.01,
    "replacement_rate": 1e-4,
    "measured_examples": 1200,
    "timed_task": {
        "examples_per_task": 300,
        "measured_examples": 100,
        "rank_every": 0,
        "transition": 0,
    },
}
_PRESETS = {
    "default": {"num_seeds": 3},
}

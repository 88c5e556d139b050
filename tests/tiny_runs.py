"""Tiny settings of experiments, and runs of them that tests share."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np

from configs import pmnist
from experiments.lanes import lane_settings, make_grid


def one_lane(config):
    """Returns the settings and the key of the first lane of a case's config."""
    lane = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), make_grid(config).lanes)
    return lane_settings(config, lane), jax.random.key(lane.seed)


def tiny_digits(**overrides):
    """A config of permuted digits that compiles and runs in seconds."""
    config = pmnist.get_config("smoke")
    shrink(config)
    for field, value in overrides.items():
        config[field] = value
    return config


def shrink(config):
    """Shrinks any preset of permuted images to the same tiny program."""
    config.num_seeds, config.num_tasks, config.examples_per_task = 2, 2, 40
    config.measured_examples, config.rank_every = 20, 1
    config.hidden_units, config.hidden_layers = 5, 1
    for case in config.cases.values():
        for field in case:
            if field != "method":
                case[field] = config[field]


def write_idx_files(folder, num_images=40):
    """Writes the four IDX files of an MNIST-like set of random images."""
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = random.integers(0, 256, (num_images, 28, 28), np.uint8)
        labels = np.arange(num_images, dtype=np.uint8) % 10
        for name, magic, array in (
            ("images-idx3", 0x803, images),
            ("labels-idx1", 0x801, labels),
        ):
            header = struct.pack(f">I{array.ndim}I", magic, *array.shape)
            with gzip.open(folder / f"{split}-{name}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())

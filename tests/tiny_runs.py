"""Tiny settings of experiments, and runs of them that tests share."""

import functools
import gzip
import json
import struct

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import imagenet, labels, pmnist, scr, warm_start
from experiments.learning.keys import STREAM, make_key
from experiments.reporting import run_results
from experiments.run import provenance, runner
from experiments.run.cases import CompiledCase
from experiments.run.config import complete, lane_hyperparameters, make_grid
from experiments.streams import drifting_bits


def one_lane(config):
    """Returns the hyperparameters and the key of the first lane of a case's config."""
    lane = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), make_grid(config).lanes)
    return lane_hyperparameters(config, lane), jax.random.key(lane.seed)


def _tiny(presets, shrink_config, overrides):
    config = complete(presets.get_config("smoke"))
    shrink_config(config)
    for field, value in overrides.items():
        config[field] = value
    return config


def tiny_digits(**overrides):
    """A config of permuted digits that compiles and runs in seconds."""
    return _tiny(pmnist, shrink, overrides)


def shrink(config):
    """Shrinks any preset of permuted images to the same tiny program."""
    config.num_seeds, config.num_tasks, config.examples_per_task = 2, 2, 40
    config.measured_examples, config.rank_every = 20, 1
    config.hidden_units, config.hidden_layers = 5, 1
    for case in config.cases.values():
        for field in case:
            if field != "method":
                case[field] = config[field]


def tiny_bits(**overrides):
    """A config of drifting bits: 40 examples a bin touch periods of 15 unevenly."""
    return _tiny(scr, shrink_bits, overrides)


def shrink_bits(config):
    """Shrinks any preset of drifting bits to the same tiny programs."""
    config.num_seeds, config.num_tasks, config.examples_per_task = 2, 2, 40
    config.measured_examples, config.drift_every, config.drift = 20, 15, "one"
    config.optimizer, config.step_size = "sgd", 0.01
    config.sweep.update(dict.fromkeys(config.sweep, ()))
    distinct = {}
    for name, case in config.cases.items():
        if "activation" in case:
            case.activation = config.activation
        distinct.setdefault(case.to_json(), name)
    config.cases = {name: config.cases[name].to_dict() for name in distinct.values()}


def tiny_pairs(**overrides):
    """A config of pairs of textures: two epochs of two batches of four images."""
    return _tiny(imagenet, shrink_pairs, overrides)


def shrink_pairs(config):
    """Shrinks any preset of pairs of classes to the same tiny programs."""
    smoke = imagenet.get_config("smoke")
    for field in (
        *("dataset", "train_per_class", "test_per_class", "texture_pixels"),
        *("num_tasks", "batch_size", "hidden_units", "hidden_layers"),
        *("measured_examples", "num_seeds", "step_size"),
    ):
        config[field] = smoke[field]
    config.conv_channels, config.conv_sizes = (3,), (5,)
    config.num_epochs, config.rank_every, config.test_every_epoch = 2, 0, True


def tiny_labels(**overrides):
    """A config of changing labels: 2 passes over 20 digits, and 10 to test."""
    return _tiny(labels, lambda config: None, {"rank_every": 0} | overrides)


def tiny_warm_start(**overrides):
    """A config of growing digits: phases of tasks 0, 1 and 2, and 3, of 4 updates."""
    return _tiny(warm_start, shrink_phases, overrides)


def shrink_phases(config):
    """Shrinks any preset of growing data to the same tiny programs."""
    smoke = warm_start.get_config("smoke")
    for field in (
        *("dataset", "shares", "hidden_layers", "hidden_units", "num_seeds"),
        *("conv_channels", "conv_sizes"),
    ):
        config[field] = smoke[field]
    config.phase_tasks, config.num_tasks, config.rank_every = (1, 2), 4, 0
    config.examples_per_task, config.batch_size = 40, 10
    config.measured_examples = 20


def stream_key(seed):
    """Returns the key of the stream of the lanes with a seed."""
    return jax.random.fold_in(make_key(seed), STREAM)


@functools.cache
def _drawing_of_bits(config):
    """Compiles the stream of a config in JSON: `(seed, task) -> Examples`."""
    config = ConfigDict(json.loads(config))
    return jax.jit(
        lambda seed, task: drifting_bits.draw_task(config, stream_key(seed), task)
    )


def draw_bits(config, seed, num_tasks, first_task=0):
    """Bits [tasks x T, M] and targets [tasks x T] of so many tasks of a seed."""
    draw = _drawing_of_bits(provenance.to_json(config))
    tasks = range(first_task, first_task + num_tasks)
    drawn = [draw(jnp.uint32(seed), jnp.int32(task)) for task in tasks]
    words = np.concatenate([examples.words for examples in drawn])
    targets = np.concatenate([examples.targets for examples in drawn])
    bits = words[:, None] >> np.arange(32, dtype=np.uint32) & 1
    assert not bits[:, config.num_bits :].any()
    return bits[:, : config.num_bits].astype(np.int64), targets


def make_case(name="backprop", num_tasks=3, layers=("dense_0", "head"), scale=1.0):
    """Two step sizes x two seeds; accuracy of lane l in task t is 0.1 l + 0.01 t."""
    coordinates = {"step_size": np.array([0.1, 0.2]), "seed": np.array([5, 6])}
    accuracy = 0.1 * np.arange(4)[:, None] + 0.01 * np.arange(num_tasks)
    magnitude = np.ones((4, num_tasks, len(layers))) * np.arange(1, len(layers) + 1)
    return run_results.case_dataset(
        name,
        coordinates,
        layers,
        {"accuracy": accuracy * scale, "weight_magnitude": magnitude},
        {
            "num_weights": [30, 10, 5][: len(layers)],
            "num_units": [10, 0, 0][: len(layers)],
        },
        examples_per_task=50,
        steps_per_task=5,
        steps_per_second=1000.0,
        lanes_per_block=1,
    )


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


def run_dying_once(config, folder, make_problem, monkeypatch, *, at_call):
    """Runs a config that dies in the middle of a task, and the same command again.

    Returns the results, and the tasks that were begun, one number for each call.
    """
    run_task, calls = CompiledCase.run_task, []

    def die(self, state, task):
        calls.append(task)
        if len(calls) == at_call:
            raise RuntimeError("power cut")
        return run_task(self, state, task)

    monkeypatch.setattr(CompiledCase, "run_task", die)
    with pytest.raises(RuntimeError, match="power cut"):
        runner.run(config, folder, make_problem)
    return runner.run(config, folder, make_problem), calls

import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tiny_runs import tiny_digits

from experiments import permuted_mnist
from experiments.run import cases
from experiments.run.hooks import Hooks, TensorBoard


def read_scalars(folder):
    """Reads (tag, step, value) from the event files of a folder."""
    scalars = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            scalars += [
                (v.tag, event.step, v.simple_value) for v in event.summary.value
            ]
            data = data[12 + length + 4 :]
    return scalars


def test_events_hold_means_over_seeds_of_each_setting_and_layer(tmp_path):
    config = tiny_digits(cases={"backprop": {"method": "backprop"}})
    config.sweep.step_size = (0.1, 0.25)
    (case,) = cases.prepare_cases(config, permuted_mnist.make_problem)
    hooks = Hooks([TensorBoard(tmp_path)])
    accuracy = np.array([0.1, 0.3, 0.5, np.nan])
    dead = np.array([[0.2, np.nan], [0.4, np.nan], [0.6, np.nan], [0.8, np.nan]])
    by_epoch = accuracy[:, np.newaxis] + [0.0, 0.25, 0.5]
    assert hooks.call(case, 7, {"accuracy": accuracy, "dead_units": dead}) is None
    assert hooks.call(case, 8, {"accuracy_by_epoch": by_epoch}) is None
    hooks.close()
    folder = tmp_path / "tensorboard"
    assert read_scalars(folder / "backprop, step_size 0.1") == [
        ("accuracy", 7, pytest.approx(0.2)),
        ("dead_units/dense_0", 7, pytest.approx(0.3)),
        ("accuracy_by_epoch/0", 8, pytest.approx(0.2)),
        ("accuracy_by_epoch/1", 8, pytest.approx(0.45)),
        ("accuracy_by_epoch/2", 8, pytest.approx(0.7)),
    ]
    assert read_scalars(folder / "backprop, step_size 0.25") == [
        ("accuracy", 7, pytest.approx(0.5)),
        ("dead_units/dense_0", 7, pytest.approx(0.7)),
        ("accuracy_by_epoch/0", 8, pytest.approx(0.5)),
        ("accuracy_by_epoch/1", 8, pytest.approx(0.75)),
        ("accuracy_by_epoch/2", 8, pytest.approx(1.0)),
    ]

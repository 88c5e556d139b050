"""Five images and their labels, and what the tests of data sets share."""

import numpy as np
import pytest

from experiments.streams import datasets

NUM_IMAGES = 5
IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
IDX_CURE = "pass --config.data_dir=FOLDER"
DAMAGE_CURE = "replace it with an intact copy"


def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 28, 28), dtype=np.uint8)
    images[0, 0, :2] = 255, 128
    return images, np.array([9, 0, 3, 3, 1], np.uint8)


def idx_bytes(array, type_byte=0x08):
    header = bytes((0, 0, type_byte, array.ndim))
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def load_error(*args, **kwargs):
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load(*args, **kwargs)
    return str(caught.value)


def assert_names(message, *parts):
    for part in parts:
        assert str(part) in message

"""Optional local copies of the data sets; the tests that need one skip without it."""

import pathlib

import pytest

_DATA_DIR = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
MNIST_DIR = _DATA_DIR / "mnist"
TFDS_DIR = _DATA_DIR / "tfds"

needs_mnist = pytest.mark.skipif(
    not (MNIST_DIR / "train-images-idx3-ubyte.gz").is_file(),
    reason="no local copy of MNIST's IDX files",
)
needs_cifar100 = pytest.mark.skipif(
    not (TFDS_DIR / "cifar100").is_dir(),
    reason="no local copy of the TFDS set of CIFAR-100",
)

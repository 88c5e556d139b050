"""Data sets: strict IDX files, digits, and errors that name their remedy."""

import gzip
import subprocess
import sys

import numpy as np
from optional_data import MNIST_DIR, needs_mnist
import pytest
import tensorflow_datasets as tfds
from tiny_images import (
    DAMAGE_CURE,
    IDX_CURE,
    IMAGES,
    LABELS,
    NUM_IMAGES,
    assert_names,
    idx_bytes,
    images_and_labels,
    load_error,
)

from experiments.streams import datasets


@pytest.fixture
def idx_folder(tmp_path):
    images, labels = images_and_labels()
    (tmp_path / IMAGES).write_bytes(idx_bytes(images))
    (tmp_path / LABELS).write_bytes(idx_bytes(labels))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_idx_files_come_back_as_written(
    tmp_path, name, separator, suffix, split, prefix
):
    images, labels = images_and_labels()
    pack = gzip.compress if suffix else bytes
    images_name = f"{prefix}-images{separator}idx3-ubyte{suffix}"
    labels_name = f"{prefix}-labels{separator}idx1-ubyte{suffix}"
    (tmp_path / images_name).write_bytes(pack(idx_bytes(images)))
    (tmp_path / labels_name).write_bytes(pack(idx_bytes(labels)))

    data = datasets.load(name, tmp_path, split)

    assert data.name == name
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int32
    np.testing.assert_array_equal(data.images, images[..., np.newaxis])
    np.testing.assert_array_equal(data.labels, labels)
    assert (data.num_classes, data.max_value) == (10, 255.0)


def test_pixels_above_127_stay_positive(idx_folder):
    data = datasets.load("mnist", str(idx_folder))
    assert data.images[0, 0, :2, 0].tolist() == [255, 128]
    assert (data.images / data.max_value).max() == 1.0


def test_the_split_decides_which_files_are_read(idx_folder):
    images, labels = images_and_labels()
    (idx_folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images[:2]))
    (idx_folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels[:2]))
    assert len(datasets.load("mnist", idx_folder).labels) == NUM_IMAGES
    assert len(datasets.load("mnist", idx_folder, "test").labels) == 2


def test_a_gzip_file_is_recognized_without_its_suffix(idx_folder):
    path = idx_folder / IMAGES
    path.write_bytes(gzip.compress(path.read_bytes()))
    images, _ = images_and_labels()
    loaded = datasets.load("mnist", idx_folder).images[..., 0]
    np.testing.assert_array_equal(loaded, images)


INTACT = idx_bytes(images_and_labels()[0])
PACKED = gzip.compress(INTACT)
FLAT = idx_bytes(np.zeros((NUM_IMAGES, 784), np.uint8))
WIDE = idx_bytes(np.zeros((NUM_IMAGES, 14, 56), np.uint8))
NO_IMAGES = idx_bytes(np.zeros((0, 28, 28), np.uint8))
INT8 = idx_bytes(images_and_labels()[0], type_byte=0x09)
MAGIC = "magic number 0x00000803"
DAMAGED_IMAGES = {
    "truncated": (INTACT[:-1], "3936 bytes", "found 3935 bytes"),
    "trailing byte": (INTACT + b"\0", "3936 bytes", "found 3937 bytes"),
    "short header": (INTACT[:9], "a header of 16 bytes", "found 9 bytes"),
    "empty": (b"", MAGIC, "found 0x;"),
    "web page": (b"<html>" + INTACT, MAGIC, "found 0x3c68746d"),
    "int8": (INT8, "08 is uint8", "found 0x00000903"),
    "two dimensions": (FLAT, "3 dimensions", "found 0x00000802"),
    "not square": (WIDE, "28 x 28", "found (5, 14, 56)"),
    "no images": (NO_IMAGES, "28 x 28", "found (0, 28, 28)"),
    "truncated gzip": (PACKED[:-20], "intact gzip", "ended before"),
    "gzip checksum": (PACKED[:-8] + bytes(8), "intact gzip", "CRC"),
    "gzip header": (PACKED[:2] + bytes(30), "intact gzip", "compression method"),
    "gzip body": (PACKED[:10] + b"\xff" + PACKED[11:], "intact gzip", "block type"),
    "gzip trailer": (PACKED + b"more", "intact gzip", "Not a gzipped file"),
}
DAMAGED_LABELS = {
    "too few": (np.zeros(4, np.uint8), "5 labels", "found 4"),
    "too many": (np.zeros(6, np.uint8), "5 labels", "found 6"),
    "too large": (np.array([0, 1, 10, 2, 99], np.uint8), "0 to 9", "10 at index 2"),
}


@pytest.mark.parametrize("damage", DAMAGED_IMAGES)
def test_a_damaged_images_file_is_an_error(idx_folder, damage):
    content, expected, found = DAMAGED_IMAGES[damage]
    (idx_folder / IMAGES).write_bytes(content)
    message = load_error("mnist", idx_folder)
    assert_names(message, idx_folder / IMAGES, expected, found, DAMAGE_CURE)


@pytest.mark.parametrize("damage", DAMAGED_LABELS)
def test_a_damaged_labels_file_is_an_error(idx_folder, damage):
    labels, expected, found = DAMAGED_LABELS[damage]
    (idx_folder / LABELS).write_bytes(idx_bytes(labels))
    message = load_error("mnist", idx_folder)
    assert_names(message, idx_folder / LABELS, expected, found, DAMAGE_CURE)


@pytest.mark.parametrize(("absent", "present"), [(IMAGES, LABELS), (LABELS, IMAGES)])
def test_half_a_pair_of_files_is_an_error(idx_folder, monkeypatch, absent, present):
    monkeypatch.setattr(tfds, "builder", None)  # Calling TFDS would be a TypeError.
    (idx_folder / absent).unlink()
    message = load_error("mnist", idx_folder)
    assert_names(message, f"no {absent} (nor .gz) in {idx_folder}", IDX_CURE)
    assert f"no {present}" not in message
    assert f"and {present}" not in message


@pytest.mark.parametrize("name", datasets.LOADERS)
def test_a_data_dir_that_is_no_folder_is_an_error(idx_folder, monkeypatch, name):
    monkeypatch.setattr(tfds, "builder", None)
    for data_dir in (idx_folder / "missing", str(idx_folder / IMAGES)):
        message = load_error(name, data_dir)
        assert_names(message, repr(str(data_dir)), "not a folder", "FOLDER")


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'minst'.*digits, mnist, .*cifar100"):
        datasets.load("minst")


@pytest.mark.parametrize("name", datasets.LOADERS)
def test_an_unknown_split_lists_the_choices(name):
    with pytest.raises(ValueError, match="'valid'.*train, test"):
        datasets.load(name, split="valid")


def test_digits():
    data = datasets.load("digits")
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.images.dtype == np.uint8
    assert (data.images.min(), data.images.max(), data.max_value) == (0, 16, 16.0)
    assert data.labels.dtype == np.int32
    assert data.labels[:12].tolist() == [*range(10), 0, 1]
    np.testing.assert_array_equal(np.unique(data.labels), np.arange(data.num_classes))


def test_digits_have_no_test_split():
    with pytest.raises(ValueError, match="digits has no test split; choose 'train'"):
        datasets.load("digits", split="test")


@pytest.mark.slow
def test_importing_the_module_imports_no_heavy_package():
    heavy = {"jax", "sklearn", "tensorflow", "tensorflow_datasets", "PIL"}
    code = (
        f"import sys, experiments.streams.datasets; print({heavy} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    root = datasets.Path(datasets.__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@needs_mnist
@pytest.mark.parametrize(
    ("split", "size", "mean", "first_labels"),
    [
        ("train", 60_000, 0.1307, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
        ("test", 10_000, 0.1325, [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
    ],
)
def test_real_mnist(split, size, mean, first_labels):
    data = datasets.load("mnist", MNIST_DIR, split)
    assert data.images.shape == (size, 28, 28, 1)
    assert data.images.mean() / data.max_value == pytest.approx(mean, abs=5e-5)
    assert data.labels[:10].tolist() == first_labels

"""Data sets: strict IDX files, digits, TFDS sets, and errors that name their cure."""

import gzip
import importlib.util
import subprocess
import sys
import time
from types import SimpleNamespace

import absl.logging
import numpy as np
from optional_data import MNIST_DIR, TFDS_DIR, needs_cifar100, needs_mnist
import pytest
import requests
import tensorflow_datasets as tfds

from experiments import datasets

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


@pytest.fixture
def idx_folder(tmp_path):
    images, labels = images_and_labels()
    (tmp_path / IMAGES).write_bytes(idx_bytes(images))
    (tmp_path / LABELS).write_bytes(idx_bytes(labels))
    return tmp_path


def load_error(*args, **kwargs):
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load(*args, **kwargs)
    return str(caught.value)


def assert_names(message, *parts):
    for part in parts:
        assert str(part) in message


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


def test_importing_the_module_imports_no_heavy_package():
    heavy = {"jax", "sklearn", "tensorflow", "tensorflow_datasets", "PIL"}
    code = f"import sys, experiments.datasets; print({heavy} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    root = datasets.Path(datasets.__file__).parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def no_network(url, timeout):
    assert timeout <= 10
    raise requests.ConnectionError(f"cannot resolve {url}")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_without_files_or_network_the_error_names_both_ways_out(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(requests, "head", no_network)
    start = time.monotonic()
    message = load_error(name, tmp_path)
    assert time.monotonic() - start < 10
    assert_names(message, f"no {IMAGES} and {LABELS} (nor .gz) in {tmp_path}")
    assert_names(message, "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte", IDX_CURE)
    assert_names(message, tmp_path / name, "cannot be reached, ConnectionError")
    assert_names(message, f'tfds.builder("{name}"', "download_and_prepare")


def test_cifar100_without_network_names_the_way_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(requests, "head", no_network)
    message = load_error("cifar100", tmp_path)
    assert_names(message, tmp_path / "cifar100", "cannot be reached", IDX_CURE)
    assert_names(message, 'tfds.builder("cifar100"', "download_and_prepare")
    assert "idx" not in message
    assert not caplog.records


def test_the_verbosity_of_the_log_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", no_network)
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.INFO)
    load_error("cifar100", tmp_path)
    after = absl.logging.get_verbosity()
    absl.logging.set_verbosity(before)
    assert after == absl.logging.INFO


class Examples(list):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class FakeBuilder:
    """A TFDS builder of five grayscale images that records its preparation."""

    name = "mnist"
    url_infos = ("https://one.example/a.gz", "https://one.example/b.gz")
    info = SimpleNamespace(
        features={
            "image": SimpleNamespace(shape=(28, 28, 1)),
            "label": SimpleNamespace(num_classes=10),
        }
    )

    def __init__(self, prepared=True, failure=None):
        self.prepared, self.failure, self.formats = prepared, failure, []

    def __call__(self, name, data_dir):
        assert name == self.name
        self.data_dir = f"{data_dir}/{name}/1.0.0"
        return self

    def is_prepared(self):
        return self.prepared

    def download_and_prepare(self, file_format):
        self.formats.append(file_format)
        if self.failure:
            raise self.failure

    def as_data_source(self, split):
        assert split == "train"
        images, labels = images_and_labels()
        pairs = zip(images[..., np.newaxis], labels.tolist(), strict=True)
        return Examples({"image": image, "label": label} for image, label in pairs)


def use_builder(monkeypatch, builder, with_tensorflow=True):
    monkeypatch.setattr(tfds, "builder", builder)
    find_spec = importlib.util.find_spec

    def find(name):
        if name != "tensorflow":
            return find_spec(name)
        return SimpleNamespace() if with_tensorflow else None

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_a_prepared_tfds_set_is_read_when_there_are_no_idx_files(tmp_path, monkeypatch):
    builder = FakeBuilder()
    use_builder(monkeypatch, builder)
    monkeypatch.setattr(requests, "head", None)
    data = datasets.load("mnist", tmp_path)
    images, labels = images_and_labels()
    np.testing.assert_array_equal(data.images, images[..., np.newaxis])
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int32
    assert (data.name, data.num_classes, data.max_value) == ("mnist", 10, 255.0)
    assert builder.formats == []


def test_a_tfds_set_is_prepared_once_its_server_answers(monkeypatch):
    builder, asked = FakeBuilder(prepared=False), []
    use_builder(monkeypatch, builder)
    monkeypatch.setattr(requests, "head", lambda url, timeout: asked.append(url))
    assert len(datasets.load("mnist").images) == NUM_IMAGES
    assert builder.formats == ["array_record"]
    assert len(asked) == 1


def test_nothing_is_downloaded_without_tensorflow(tmp_path, monkeypatch):
    builder = FakeBuilder(prepared=False)
    use_builder(monkeypatch, builder, with_tensorflow=False)
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    message = load_error("mnist", tmp_path)
    assert_names(message, "TensorFlow, which TFDS needs", "is not installed")
    assert "cannot be reached" not in message
    assert builder.formats == []


def test_a_failed_preparation_is_an_error_with_its_reason(tmp_path, monkeypatch):
    builder = FakeBuilder(prepared=False, failure=OSError("no space left on device"))
    use_builder(monkeypatch, builder)
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    message = load_error("mnist", tmp_path)
    assert_names(message, tmp_path / "mnist", "no space left on device", IDX_CURE)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((27, 28, 1), np.uint8), "same shape"),
        (np.zeros((28, 28, 1), np.uint16), "uint16"),
    ],
)
def test_an_image_of_another_kind_is_an_error(tmp_path, monkeypatch, image, found):
    builder = FakeBuilder()
    examples = builder.as_data_source("train")
    examples[3]["image"] = image
    builder.as_data_source = lambda split: examples
    use_builder(monkeypatch, builder)
    message = load_error("mnist", tmp_path)
    assert_names(message, builder.data_dir, "cannot be read", found)


def test_a_tfds_label_out_of_range_is_an_error(tmp_path, monkeypatch):
    builder = FakeBuilder()
    builder.info = SimpleNamespace(
        features={**FakeBuilder.info.features, "label": SimpleNamespace(num_classes=9)}
    )
    use_builder(monkeypatch, builder)
    message = load_error("mnist", tmp_path)
    assert_names(message, builder.data_dir, "found label 9 at index 0")


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


@needs_cifar100
def test_real_cifar100():
    data = datasets.load("cifar100", TFDS_DIR, "test")
    assert data.images.shape == (10_000, 32, 32, 3)
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(data.labels), np.full(100, 100))
    channel_means = data.images.mean((0, 1, 2)) / data.max_value
    np.testing.assert_allclose(channel_means, [0.5088, 0.4874, 0.4419], atol=5e-4)


@needs_cifar100
def test_a_missing_shard_is_an_error(tmp_path):
    version = next((TFDS_DIR / "cifar100").iterdir())
    copy = tmp_path / "cifar100" / version.name
    copy.mkdir(parents=True)
    for path in version.iterdir():
        if path.suffix in (".json", ".txt"):
            (copy / path.name).write_bytes(path.read_bytes())
    message = load_error("cifar100", tmp_path, "test")
    assert_names(message, copy, "cannot be read", "move that folder away")

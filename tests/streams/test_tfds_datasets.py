"""Data sets of TFDS: prepared, to be prepared, damaged, or out of reach."""

import importlib.util
import json
from types import SimpleNamespace

import absl.logging
from fake_tfds import FakeBuilder
import numpy as np
from optional_data import TFDS_DIR, needs_cifar100
import pytest
import requests
import tensorflow_datasets as tfds
from tiny_images import (
    IDX_CURE,
    IMAGES,
    LABELS,
    NUM_IMAGES,
    assert_names,
    images_and_labels,
    load_error,
)

from experiments.streams import datasets


def no_network(url, timeout):
    assert timeout <= 10
    raise requests.ConnectionError(f"cannot resolve {url}")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_without_files_or_network_the_error_names_both_ways_out(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(requests, "head", no_network)
    message = load_error(name, tmp_path)
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


def test_the_way_out_names_the_configuration_of_a_set(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", no_network)
    message = load_error("emnist/balanced", tmp_path)
    assert_names(message, 'tfds.builder("emnist/balanced"', "download_and_prepare")


def test_the_verbosity_of_the_log_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", no_network)
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.INFO)
    load_error("cifar100", tmp_path)
    after = absl.logging.get_verbosity()
    absl.logging.set_verbosity(before)
    assert after == absl.logging.INFO


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


def copy_of_cifar100(folder, version=None, edit=lambda text: text):
    """Links to the prepared set, whose description is edited."""
    (source,) = (TFDS_DIR / "cifar100").iterdir()
    copy = folder / "cifar100" / (version or source.name)
    copy.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json":
            (copy / path.name).write_text(edit(path.read_text()))
        else:
            (copy / path.name).symlink_to(path)
    return copy, source.name


@needs_cifar100
def test_a_set_of_another_format_can_be_converted_where_it_is(tmp_path):
    copy, _ = copy_of_cifar100(
        tmp_path, edit=lambda text: text.replace("array_record", "tfrecord")
    )
    message = load_error("cifar100", tmp_path)
    assert_names(message, copy, "has the format tfrecord, but array_record is needed")
    assert_names(
        message,
        f"tfds convert_format --dataset_version_dir={copy} "
        "--out_file_format=array_record",
    )
    assert "move that folder away" not in message


@needs_cifar100
def test_a_set_that_was_converted_is_read(tmp_path):
    """As the command leaves it: the old format is still the first."""

    def edit(text):
        description = json.loads(text)
        if "fileFormat" not in description:
            return text
        added = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
        return json.dumps(description | added)

    copy_of_cifar100(tmp_path, edit=edit)
    assert len(datasets.load("cifar100", tmp_path, "test").images) == 10_000


@needs_cifar100
def test_a_set_that_is_not_prepared_names_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", no_network)
    copy, version = copy_of_cifar100(
        tmp_path, "1.0.0", lambda text: text.replace('"3.0.2"', '"1.0.0"')
    )
    (copy.parent / f"incomplete.AB12_{version}").mkdir()
    message = load_error("cifar100", tmp_path)
    assert_names(message, f"tensorflow-datasets needs version {version}")
    assert_names(message, f"an unfinished preparation, incomplete.AB12_{version}")
    (copy.parent / version).mkdir()
    message = load_error("cifar100", tmp_path)
    assert_names(message, "a folder without dataset_info.json")


@needs_cifar100
def test_the_folder_of_a_set_is_not_the_folder_of_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", None)  # Nothing is to be downloaded into it.
    copy, _ = copy_of_cifar100(tmp_path)
    for folder in (copy, copy.parent):
        message = load_error("cifar100", folder)
        assert_names(message, folder, f"--config.data_dir={tmp_path}")


def test_a_set_without_labels_is_an_error(tmp_path, monkeypatch):
    builder = FakeBuilder()
    features = {"image": FakeBuilder.info.features["image"], "fine": None}
    builder.info = SimpleNamespace(features=features)
    use_builder(monkeypatch, builder)
    message = load_error("mnist", tmp_path)
    assert_names(message, builder.data_dir, "['image', 'fine']", "'label'")

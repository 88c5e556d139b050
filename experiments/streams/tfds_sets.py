"""Reads and prepares sets of TensorFlow Datasets (TFDS).

TensorFlow is needed only to prepare a set, never to read it. TFDS is imported only when
a set is read.

Shapes: M images of H x W pixels, C channels; K classes of N images.
"""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from experiments.streams.dataset_errors import DatasetError, check_labels

_FORMAT = "array_record"  # A TFDS format that can be read without TensorFlow.
_INFO_FILE = "dataset_info.json"  # TFDS writes it last.
_HOST_TIMEOUT_SECONDS = 5.0
_CHUNK = 2048  # Examples in memory at a time, if not all are kept.


def read_split(
    name: str, folder: Path | None, split: str, label: str = "label"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads all images and labels of a split.

    Args:
      name: name of the set.
      folder: folder of prepared sets, None for TFDS's default.
      split: split of the set.
      label: name of the feature that is the label.

    Returns:
      Images uint8 [M, H, W, C], labels int32 [M] and the number of classes.

    Raises:
      DatasetError: the set is damaged, or it is not prepared and cannot be prepared.
    """
    with _reading(name, folder) as builder:
        chunks = list(_chunks(builder, split, label))
        images = np.concatenate([images for images, _ in chunks])
        labels = np.concatenate([labels for _, labels in chunks])
    num_classes = builder.info.features[label].num_classes
    check_labels(labels, num_classes, Path(builder.data_dir))
    return images, labels, num_classes


def read_classes(
    name: str, folder: Path | None, split: str, num_classes: int, per_class: int
) -> np.ndarray:
    """Reads the first images of the first classes of a split.

    It stops as soon as it has them and keeps no others, so it can read a small part of
    a set that does not fit in memory.

    Args:
      name: name of the set.
      folder: folder of prepared sets, None for TFDS's default.
      split: split of the set.
      num_classes: K, 0 for all classes of the set.
      per_class: N.

    Returns:
      uint8 [K, N, H, W, C]: classes by label, images in the order of the set.

    Raises:
      DatasetError: there are fewer classes or images, or see `read_split`.
    """
    kept = None
    with _reading(name, folder) as builder:
        available = builder.info.features["label"].num_classes
        num_classes = num_classes or available
        counts = np.zeros(num_classes, int)
        if num_classes <= available:
            for images, labels in _chunks(builder, split):
                if kept is None:
                    kept = np.zeros(
                        (num_classes, per_class, *images.shape[1:]), np.uint8
                    )
                for image, label in zip(images, labels, strict=True):
                    if 0 <= label < num_classes and counts[label] < per_class:
                        kept[label, counts[label]] = image
                        counts[label] += 1
                if counts.min() == per_class:
                    break
    if num_classes > available:
        raise DatasetError(
            f"{name} has {available} classes, but {num_classes} are needed; set "
            f"--config.num_classes to at most {available}"
        )
    if kept is None or counts.min() < per_class:
        raise DatasetError(
            f"{name} has {counts.min()} images of class {counts.argmin()} in its split "
            f"{split!r}, but {per_class} per class are needed; lower "
            "--config.train_per_class and --config.test_per_class"
        )
    return kept


@contextlib.contextmanager
def _reading(name: str, folder: Path | None) -> Iterator[Any]:
    """Yields the builder of a prepared set; errors inside mean a damaged set."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(
            f"{name}: reading a TFDS set needs more packages ({error}); run "
            "pip install tensorflow-datasets importlib_resources pillow"
        ) from error
    with _quiet_absl():
        builder = tfds.builder(name, data_dir=folder)
        if not builder.is_prepared():
            _check_folder(builder, folder)
            _prepare(builder)
        _check_features(builder)
        _choose_format(builder)
        try:
            yield builder
        # TFDS raises this if it cannot read the set's format.
        except NotImplementedError as error:
            raise DatasetError(_wrong_format(builder)) from error
        # Storage formats raise various errors: RuntimeError, DecodeError, OSError ...
        except Exception as error:
            raise DatasetError(
                f"{name}: the TFDS set in {builder.data_dir} cannot be read ({error}); "
                f"move that folder away, then {_tfds_cure(builder)}"
            ) from error


def _chunks(
    builder: Any, split: str, label: str = "label"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads a split in chunks: images uint8 [M, H, W, C] and labels int32 [M]."""
    source = builder.as_data_source(split=split)
    shape = builder.info.features["image"].shape
    for start in range(0, len(source), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(source)))
        yield _stack(source.__getitems__(indices), shape, label)


def _stack(
    examples: Sequence[Any], shape: Sequence[int], label: str
) -> tuple[np.ndarray, np.ndarray]:
    pixels = [example["image"] for example in examples]
    images = np.stack(pixels, dtype=np.uint8, casting="no")
    labels = np.array([example[label] for example in examples], np.int32)
    return images.reshape(len(examples), *shape), labels


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Hides TFDS's warnings, such as of an unprepared set, but not its errors."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_folder(builder: Any, folder: Path | None) -> None:
    """Raises DatasetError for a folder inside the one that should have been passed.

    Otherwise the set would be downloaded again, into its own folder.
    """
    data_dir = Path(builder.data_dir).absolute()
    if folder is None or not data_dir.is_relative_to(folder.absolute()):
        return
    place = data_dir.relative_to(folder.absolute())
    for parent in folder.absolute().parents:
        if (parent / place / _INFO_FILE).is_file():
            raise DatasetError(
                f"{builder.name}: data_dir {str(folder)!r} is a folder of the set "
                f"itself; pass the folder of all sets, --config.data_dir={parent}"
            )


def _check_features(builder: Any) -> None:
    """Raises DatasetError unless a set has labeled images."""
    found = list(builder.info.features)
    missing = [name for name in ("image", "label") if name not in found]
    if missing:
        raise DatasetError(
            f"{builder.name}: the TFDS set in {builder.data_dir} has the features "
            f"{found}, but needs 'image' and 'label'; move that folder away, then "
            f"{_tfds_cure(builder)}"
        )


def _choose_format(builder: Any) -> None:
    """Selects files added by `tfds convert_format`, which TFDS does not select."""
    path = Path(builder.data_dir) / _INFO_FILE
    added = []
    if path.is_file():
        added = json.loads(path.read_text()).get("alternativeFileFormats", [])
    if _FORMAT in added:
        builder.info.set_file_format(
            _FORMAT, override=True, override_if_initialized=True
        )


def _wrong_format(builder: Any) -> str:
    found = builder.info.file_format
    return (
        f"{builder.name}: the TFDS set in {builder.data_dir} has the format "
        f"{getattr(found, 'value', found)}, but {_FORMAT} is needed, which can be read "
        f"without TensorFlow. To add {_FORMAT} files to the folder, run `tfds "
        f"convert_format --dataset_version_dir={builder.data_dir} "
        f"--out_file_format={_FORMAT}` where tensorflow, apache-beam and mlcroissant "
        "are installed in addition to tensorflow-datasets. Or leave the folder as it "
        f"is and, with another FOLDER, {_tfds_cure(builder)}"
    )


def _what_is_there(builder: Any) -> str:
    """Describes what a folder contains instead of the prepared set, if anything."""
    wanted = Path(builder.data_dir)
    names = sorted(path.name for path in wanted.parent.glob("*") if path.is_dir())
    # TFDS's name for the folder of an unfinished preparation.
    unfinished = [name for name in names if name.startswith("incomplete.")]
    versions = [
        name
        for name in names
        if name not in unfinished and (wanted.parent / name / _INFO_FILE).is_file()
    ]
    found = []
    if wanted.is_dir():
        found.append(
            f"a folder without {_INFO_FILE}, left by an incomplete copy or preparation"
        )
    if versions:
        found.append(
            f"only version {' and '.join(versions)}, while the installed "
            f"tensorflow-datasets needs version {wanted.name}"
        )
    if unfinished:
        found.append(f"an unfinished preparation, {', '.join(unfinished)}")
    return f" (there is {'; '.join(found)})" if found else ""


def _prepare(builder: Any) -> None:
    """Downloads and prepares a TFDS set, or raises early if that cannot work.

    TFDS retries a dead connection for minutes, and only notices that TensorFlow is
    missing after the download, so both are checked first.
    """
    problems = _unreachable_hosts(builder)
    if importlib.util.find_spec("tensorflow") is None:
        problems.append("TensorFlow, which TFDS needs to prepare it, is not installed")
    try:
        if problems:
            raise RuntimeError("; ".join(problems))
        builder.download_and_prepare(file_format=_FORMAT)
    except Exception as error:
        raise DatasetError(
            f"{builder.name}: the TFDS set is not prepared in {builder.data_dir}"
            f"{_what_is_there(builder)} and cannot be prepared here ({error}); "
            f"{_tfds_cure(builder)}"
        ) from error


def _unreachable_hosts(builder: Any) -> list[str]:
    """Tries each download server once, through the proxy if one is set."""
    import requests

    urls = {urlsplit(url).netloc: url for url in builder.url_infos or ()}
    problems = []
    for host, url in urls.items():
        try:
            requests.head(url, timeout=_HOST_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            problems.append(f"{host} cannot be reached, {type(error).__name__}")
    return problems


def _tfds_cure(builder: Any) -> str:
    config = getattr(builder, "builder_config", None)
    name = f"{builder.name}/{config.name}" if config else builder.name
    return (
        "prepare it on a machine with a network and TensorFlow with "
        f'tfds.builder("{name}", data_dir="FOLDER")'
        f'.download_and_prepare(file_format="{_FORMAT}") '
        "and pass --config.data_dir=FOLDER"
    )

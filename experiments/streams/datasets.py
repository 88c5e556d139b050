"""Image data sets as NumPy arrays: scikit-learn digits, IDX files and TFDS.

Images stay uint8, as stored; a program divides them by `max_value` on the device.
scikit-learn and TensorFlow Datasets (TFDS) are imported only for sets that need them.
"""

from collections.abc import Callable, Mapping
import gzip
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple
import zlib

import numpy as np

from experiments.streams import tfds_sets
from experiments.streams.dataset_errors import DatasetError, check_labels, damaged

SPLITS = ("train", "test")

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_IDX_UINT8 = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_MNIST_IMAGE_SHAPE = (28, 28)
_MNIST_NUM_CLASSES = 10


class ImageDataset(NamedTuple):
    """One split of a labeled image data set; M images of H x W pixels, C channels."""

    name: str
    images: np.ndarray  # uint8 [M, H, W, C], 0 to max_value
    labels: np.ndarray  # int32 [M], 0 to num_classes - 1
    num_classes: int
    max_value: float  # images / max_value is in [0, 1]


def load(
    name: str, data_dir: str | os.PathLike | None = None, split: str = "train"
) -> ImageDataset:
    """Loads one split of a data set into memory.

    * `digits`: scikit-learn's embedded 8 x 8 digits, 1,797 images with pixels 0 to
      16. It has no test split, reads no folder and never uses the network.
    * `mnist`, `fashion_mnist`, `kmnist`: the IDX files in `data_dir`, gzipped or not;
      without them, the TFDS set of that name. The file names are the same for all
      three, so the folder determines which one is read.
    * `cifar100`, `cifar100_coarse`: the TFDS set, with the 100 fine labels or the 20
      coarse ones.
    * `emnist/balanced`: the TFDS set of 47 classes of letters and digits, as it is
      stored there, which is transposed.

    A TFDS set that is not prepared is downloaded and prepared, if possible.

    Args:
      name: one of `LOADERS`.
      data_dir: folder of the IDX files or of prepared TFDS sets. None or an empty
        string is TFDS's default folder.
      split: "train" or "test".

    Returns:
      The images (uint8 `[M, H, W, C]`, not scaled) and labels (int32 `[M]`), in the
      order in which they are stored.

    Raises:
      ValueError: `name` or `split` is unknown.
      DatasetError: `data_dir` is not a folder, or the data set is missing or damaged.

    Source: Alpaydin and Kaynak 1998 (digits), LeCun et al. 1998 (MNIST), Xiao et al.
    2017 (Fashion-MNIST), Clanuwat et al. 2018 (KMNIST), Krizhevsky 2009 (CIFAR-100),
    Cohen et al. 2017 (EMNIST).
    """
    if name not in LOADERS:
        choices = ", ".join(LOADERS)
        raise ValueError(f"unknown data set {name!r}; choose one of {choices}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = Path(data_dir).expanduser() if data_dir else None
    if folder is not None and not folder.is_dir():
        raise DatasetError(
            f"data_dir {str(data_dir)!r} is not a folder; pass an existing one as "
            "--config.data_dir=FOLDER, or omit it"
        )
    return LOADERS[name](name, folder, split)


def _load_digits(name: str, folder: Path | None, split: str) -> ImageDataset:
    del folder  # The images are part of scikit-learn.
    if split != "train":
        raise ValueError(f"{name} has no {split} split; choose 'train'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    return ImageDataset(name, images, labels, num_classes=10, max_value=16.0)


def _load_idx_or_tfds(name: str, folder: Path | None, split: str) -> ImageDataset:
    paths = [_find_idx(folder, file_name) for file_name in _IDX_FILES[split]]
    if all(paths):
        return _load_idx(name, *paths)
    pairs = zip(_IDX_FILES[split], paths, strict=True)
    missing = " and ".join(file_name for file_name, path in pairs if path is None)
    place = f"in {folder}" if folder else "to read, because data_dir is not set"
    message = (
        f"{name}: no {missing} (nor .gz) {place}; put the four IDX files "
        f"({', '.join(itertools.chain(*_IDX_FILES.values()))}, each with or without "
        ".gz) into a folder and pass --config.data_dir=FOLDER"
    )
    if any(paths):
        raise DatasetError(message)
    try:
        return _load_tfds(name, folder, split)
    except DatasetError as error:
        raise DatasetError(
            f"{message}.\nThere is no TFDS set either: {error}"
        ) from error


def _find_idx(folder: Path | None, file_name: str) -> Path | None:
    """Finds a file under either spelling of its name, gzipped or not."""
    if folder is None:
        return None
    spellings = (file_name, file_name.replace("-idx", ".idx"))
    paths = [folder / f"{name}{end}" for name in spellings for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def _load_idx(name: str, images_path: Path, labels_path: Path) -> ImageDataset:
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    if not len(images) or images.shape[1:] != _MNIST_IMAGE_SHAPE:
        raise damaged(images_path, "images of 28 x 28 pixels", f"{images.shape}")
    if len(labels) != len(images):
        expected = f"{len(images)} labels, one per image of {images_path.name}"
        raise damaged(labels_path, expected, f"{len(labels)}")
    check_labels(labels, _MNIST_NUM_CLASSES, labels_path)
    images, labels = images[..., np.newaxis], labels.astype(np.int32)
    return ImageDataset(name, images, labels, _MNIST_NUM_CLASSES, max_value=255.0)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped or not, and checks all of it.

    Args:
      path: the file; gzip is recognized by its content, not by the name.
      ndim: the number of dimensions it must have.

    Returns:
      A new uint8 array with `ndim` dimensions.

    Raises:
      DatasetError: the gzip stream, the magic number or the length is wrong.

    Source: the format's description on LeCun's MNIST page: two zero bytes, a type
    byte, the number of dimensions, each size as a big-endian uint32, the data.
    """
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path, "an intact gzip file", str(error)) from error
    magic = bytes((0, 0, _IDX_UINT8, ndim))
    if content[:4] != magic:
        expected = f"magic number 0x{magic.hex()} (08 is uint8, then {ndim} dimensions)"
        raise damaged(path, expected, f"0x{content[:4].hex()}")
    size = 4 + 4 * ndim
    if len(content) < size:
        raise damaged(path, f"a header of {size} bytes", f"{len(content)} bytes")
    shape = tuple(np.frombuffer(content, ">u4", count=ndim, offset=4).tolist())
    num_bytes = size + math.prod(shape)
    if len(content) != num_bytes:
        expected = f"{num_bytes} bytes for shape {shape}"
        raise damaged(path, expected, f"{len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=size).reshape(shape).copy()


def _load_tfds(name: str, folder: Path | None, split: str) -> ImageDataset:
    images, labels, num_classes = tfds_sets.read_split(name, folder, split)
    return ImageDataset(name, images, labels, num_classes, max_value=255.0)


def _load_coarse_cifar100(name: str, folder: Path | None, split: str) -> ImageDataset:
    images, labels, num_classes = tfds_sets.read_split(
        "cifar100", folder, split, label="coarse_label"
    )
    return ImageDataset(name, images, labels, num_classes, max_value=255.0)


LOADERS: Mapping[str, Callable[[str, Path | None, str], ImageDataset]] = {
    "digits": _load_digits,
    "mnist": _load_idx_or_tfds,
    "fashion_mnist": _load_idx_or_tfds,
    "kmnist": _load_idx_or_tfds,
    "cifar100": _load_tfds,
    "cifar100_coarse": _load_coarse_cifar100,
    "emnist/balanced": _load_tfds,
}

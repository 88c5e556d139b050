"""Images by class, from files or TensorFlow Datasets, for streams that choose classes.

Shapes: K classes, N images per class, H x W pixels, C channels.
"""

from collections.abc import Callable, Mapping
import functools
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.streams.class_files import read_class_files
from experiments.streams.dataset_errors import DatasetError
from experiments.streams.tfds_sets import read_classes


class ClassImages(NamedTuple):
    """Training and test images of classes; pixels are 0 to 255."""

    train: np.ndarray  # uint8 [K, training images, H, W, C]
    test: np.ndarray  # uint8 [K, test images, H, W, C]

    def mean_image(self) -> np.ndarray:
        """Returns the mean of all training images over 255, float32 [H, W, C]."""
        return np.float32(self.train.mean((0, 1), dtype=np.float64) / 255)


@functools.lru_cache(maxsize=1)
def load(
    name: str,
    data_dir: str,
    num_classes: int,
    train_per_class: int,
    test_per_class: int,
) -> ClassImages:
    """Loads the first images of the first classes of a set, and caches the last call.

    * `class_files`: a folder with one NumPy file per class; see `read_class_files`. The
      first images of a file are for training, the next ones for testing.
    * `cifar100`: the TFDS set, with its test split.
    * `imagenet_resized/32x32`: the TFDS set of small ImageNet. All images are from its
      training split, since the other has only 50 images per class.

    Args:
      name: one of `LOADERS`.
      data_dir: folder of the class files or of prepared TFDS sets; "" for TFDS's
        default.
      num_classes: K, 0 for all classes of the set.
      train_per_class: training images per class.
      test_per_class: test images per class.

    Returns:
      The images. They are read-only, because all cases of a run share them.

    Raises:
      DatasetError: `data_dir` is not a folder, the set is missing or damaged, or it has
        fewer classes or images.

    Source: Chrabaszcz et al. 2017 (small ImageNet), Krizhevsky 2009 (CIFAR-100).
    """
    folder = Path(data_dir).expanduser() if data_dir else None
    if folder is not None and not folder.is_dir():
        raise DatasetError(
            f"data_dir {data_dir!r} is not a folder; pass an existing one as "
            "--config.data_dir=FOLDER"
        )
    images = LOADERS[name](name, folder, num_classes, train_per_class, test_per_class)
    for array in images:
        array.flags.writeable = False
    return images


def _load_class_files(
    name: str, folder: Path | None, num_classes: int, num_train: int, num_test: int
) -> ClassImages:
    if folder is None:
        raise DatasetError(
            f"{name} needs the folder of the class files: pass --config.data_dir=FOLDER"
        )
    images = read_class_files(folder, num_classes, num_train + num_test)
    return ClassImages(images[:, :num_train], images[:, num_train:])


def _load_two_splits(
    name: str, folder: Path | None, num_classes: int, num_train: int, num_test: int
) -> ClassImages:
    return ClassImages(
        read_classes(name, folder, "train", num_classes, num_train),
        read_classes(name, folder, "test", num_classes, num_test),
    )


def _load_one_split(
    name: str, folder: Path | None, num_classes: int, num_train: int, num_test: int
) -> ClassImages:
    images = read_classes(name, folder, "train", num_classes, num_train + num_test)
    return ClassImages(images[:, :num_train], images[:, num_train:])


LOADERS: Mapping[str, Callable[..., ClassImages]] = MappingProxyType(
    {
        "class_files": _load_class_files,
        "cifar100": _load_two_splits,
        "imagenet_resized/32x32": _load_one_split,
    }
)

"""Reads a folder with one NumPy file per class, the format of the paper's authors.

Shapes: K classes of N images of H x W pixels, C channels.
"""

from pathlib import Path
import re

import numpy as np

from experiments.streams.dataset_errors import DatasetError

_CHANNELS = (1, 3)


def read_class_files(folder: Path, num_classes: int, per_class: int) -> np.ndarray:
    """Reads `0.npy`, `1.npy` ... in a folder, or in its subfolder `classes`.

    Each contains the images of one class, `[images, C, H, W]` or `[images, H, W, C]`
    with 1 or 3 channels, as uint8, or as floats from 0 to 255 or, in all files, from 0
    to 1. All headers are checked before any image is read.

    Args:
      folder: folder of the files.
      num_classes: K, 0 for all classes.
      per_class: N, the first images of each file.

    Returns:
      uint8 [K, N, H, W, C].

    Raises:
      DatasetError: a file is missing, is not such an array, has too few images, or
        differs from the first in shape or dtype; there are too few files; or pixels are
        out of range.
    """
    paths = _find_files(folder, num_classes)
    arrays = [_open(path) for path in paths]
    _check_alike(paths, arrays)
    for path, array in zip(paths, arrays, strict=True):
        if len(array) < per_class:
            raise DatasetError(
                f"{path} has {len(array)} images, but {per_class} per class are "
                "needed; lower --config.train_per_class and --config.test_per_class"
            )
    channels_first = _has_channels_first(paths[0], arrays[0].shape)
    scale = _scale(paths, arrays, per_class)
    classes = []
    for array in arrays:
        images = np.asarray(array[:per_class])
        if scale is not None:
            images = np.rint(images.astype(np.float64) * scale).astype(np.uint8)
        classes.append(np.moveaxis(images, 1, -1) if channels_first else images)
    return np.stack(classes)


def _find_files(folder: Path, num_classes: int) -> list[Path]:
    """Returns the paths of the class files in order, without gaps."""
    if (folder / "classes").is_dir():
        folder = folder / "classes"
    numbers = {
        int(path.stem)
        for path in folder.glob("*.npy")
        if re.fullmatch(r"\d+", path.stem)
    }
    if not numbers:
        raise DatasetError(
            f"{folder} contains no class files (0.npy, 1.npy ...); pass the folder "
            "that does as --config.data_dir=FOLDER"
        )
    if max(numbers) + 1 < num_classes:
        raise DatasetError(
            f"{folder} has {len(numbers)} classes, but {num_classes} are needed; set "
            f"--config.num_classes to at most {len(numbers)}"
        )
    num_classes = num_classes or max(numbers) + 1
    missing = sorted(set(range(num_classes)) - numbers)
    if missing:
        raise DatasetError(
            f"{folder} lacks {len(missing)} of the {num_classes} class files, starting "
            f"with {missing[0]}.npy; copy them there, or set --config.num_classes to "
            f"{missing[0]}"
        )
    return [folder / f"{number}.npy" for number in range(num_classes)]


def _open(path: Path) -> np.ndarray:
    """Opens a file without reading its images."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as a NumPy array ({error}); replace it with an "
            "intact copy of the original"
        ) from error


def _check_alike(paths: list[Path], arrays: list[np.ndarray]) -> None:
    first = arrays[0]
    if first.dtype != np.uint8 and not np.issubdtype(first.dtype, np.floating):
        raise DatasetError(
            f"{paths[0]} has dtype {first.dtype}; class files must be uint8 or floats"
        )
    for path, array in zip(paths, arrays, strict=True):
        if array.dtype != first.dtype:
            raise DatasetError(
                f"{path} has dtype {array.dtype}, but {paths[0].name} has "
                f"{first.dtype}; all class files must have the same dtype"
            )
        if array.shape[1:] != first.shape[1:]:
            raise DatasetError(
                f"{path} has shape {array.shape}, but {paths[0].name} has "
                f"{first.shape}; all images must have the same shape"
            )


def _has_channels_first(path: Path, shape: tuple[int, ...]) -> bool:
    if len(shape) == 4:
        first, last = (shape[axis] in _CHANNELS for axis in (1, 3))
        if first != last:
            return first
    raise DatasetError(
        f"{path} has shape {shape}; class files must be [images, channels, height, "
        "width] or [images, height, width, channels], with 1 or 3 channels"
    )


def _scale(paths: list[Path], arrays: list[np.ndarray], per_class: int) -> float | None:
    """Returns the factor that scales all pixels to 0 to 255; None if they are uint8."""
    if arrays[0].dtype == np.uint8:
        return None
    highest = 0.0
    for path, array in zip(paths, arrays, strict=True):
        pixels = array[:per_class]
        low, high = float(np.min(pixels)), float(np.max(pixels))
        if not (low >= 0 and high <= 255):
            raise DatasetError(
                f"{path} has pixels from {low:g} to {high:g}; floats must be from 0 to "
                "255, or all from 0 to 1"
            )
        highest = max(highest, high)
    return 1.0 if highest > 1 else 255.0

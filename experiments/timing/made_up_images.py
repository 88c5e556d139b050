"""A folder that looks like MNIST, to time its problem without a download."""

import pathlib
import struct

import numpy as np

# As in MNIST, to take the same place in caches.
_NUM_IMAGES, _NUM_CLASSES, _PIXELS = 60_000, 10, 28


def write_images(folder: pathlib.Path) -> None:
    """Writes the IDX files of a training split of random images into a folder."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_NUM_IMAGES, _PIXELS, _PIXELS), np.uint8)
    labels = random.integers(0, _NUM_CLASSES, _NUM_IMAGES, np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        # The magic number of an IDX file: two zeros, uint8, the number of axes.
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(header + array.tobytes())

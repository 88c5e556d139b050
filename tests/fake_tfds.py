"""A builder of TFDS that needs no files."""

from types import SimpleNamespace

import numpy as np
from tiny_images import images_and_labels


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

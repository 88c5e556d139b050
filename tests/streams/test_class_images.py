"""Images by class: folders of class files, and sets of TFDS."""

import re

from fake_tfds import FakeBuilder
import numpy as np
from optional_data import TFDS_DIR, needs_cifar100
import pytest
import tensorflow_datasets as tfds

from experiments.streams import class_images, datasets
from experiments.streams.dataset_errors import DatasetError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 6, 3), np.uint8)
"""Three classes of five images of 4 x 6 pixels."""


def write(folder, classes, subfolder="classes"):
    for number, images in enumerate(classes):
        path = folder / subfolder / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, images)


def load(folder, num_classes=0, train=3, test=2, name="class_files"):
    return class_images.load(name, str(folder), num_classes, train, test)


def to_channels_first(images):
    return np.moveaxis(images, -1, 1)


# What a file may hold of the same images.
FORMS = {
    "uint8": lambda images: images,
    "channels first": to_channels_first,
    "floats to 255": lambda images: to_channels_first(images.astype(np.float32)),
    "doubles to 1": lambda images: images / 255,
    "floats to 1": lambda images: to_channels_first(images.astype(np.float32) / 255),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("subfolder", ["classes", "."])
def test_class_files_of_every_form_are_the_same_images(tmp_path, form, subfolder):
    write(tmp_path, map(FORMS[form], IMAGES), subfolder)
    images = load(tmp_path)
    assert images.train.dtype == images.test.dtype == np.uint8
    np.testing.assert_array_equal(images.train, IMAGES[:, :3])
    np.testing.assert_array_equal(images.test, IMAGES[:, 3:])


def test_only_the_first_classes_and_images_are_used(tmp_path):
    write(tmp_path, [*IMAGES, IMAGES[0, :1]])
    images = load(tmp_path, num_classes=2, train=2, test=1)
    np.testing.assert_array_equal(images.train, IMAGES[:2, :2])
    np.testing.assert_array_equal(images.test, IMAGES[:2, 2:3])
    mean = IMAGES[:2, :2].reshape(4, 4, 6, 3).astype(float).mean(0) / 255
    np.testing.assert_allclose(images.mean_image(), mean, rtol=1e-6)
    assert images.mean_image().dtype == np.float32


def test_dark_images_of_a_bright_set_stay_dark(tmp_path):
    """Whether floats go to 1 or to 255 is a question to all files together."""
    dark = np.ones((5, 4, 6, 3))
    write(tmp_path, [dark, IMAGES[1].astype(float)])
    np.testing.assert_array_equal(load(tmp_path).train[0], dark[:3])


def test_a_set_is_loaded_once_for_all_cases(tmp_path):
    write(tmp_path, IMAGES)
    images = load(tmp_path)
    assert load(tmp_path) is images
    assert not images.train.flags.writeable


def swap(number, images):
    return [images if index == number else one for index, one in enumerate(IMAGES)]


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (IMAGES, {"num_classes": 4}, "classes has 3 classes, but 4 are needed"),
        (IMAGES, {"train": 4}, r"0\.npy has 5 images, but 6 per class are needed"),
        (swap(2, IMAGES[2, :4]), {}, r"2\.npy has 4 images, but 5"),
        (
            swap(1, IMAGES[1] / 255),
            {},
            r"1\.npy has dtype float64, but 0\.npy has uint8",
        ),
        (swap(1, IMAGES[1, :, :3]), {}, r"1\.npy has shape \(5, 3, 6, 3\), but"),
        (IMAGES[..., :2], {}, r"0\.npy has shape \(5, 4, 6, 2\); class files"),
        (IMAGES[:, :, :3], {}, r"\(5, 3, 6, 3\); class files must be \[images"),
        (IMAGES[..., 0], {}, r"0\.npy has shape \(5, 4, 6\); class files"),
        (IMAGES.astype(int), {}, "0.npy has dtype int64; class files must be"),
        (IMAGES / 255 - 0.5, {}, "has pixels from -0.5 to 0.5; floats must be from"),
        (IMAGES * 2.0, {}, "has pixels from 0 to 510; floats must be"),
        (IMAGES * np.nan, {}, "has pixels from nan to nan"),
    ],
)
def test_what_is_wrong_with_class_files_is_said(tmp_path, classes, options, message):
    write(tmp_path, classes)
    with pytest.raises(DatasetError, match=message):
        load(tmp_path, **options)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"contains no class files.*config.data_dir"):
        load(tmp_path)
    with pytest.raises(DatasetError, match="'nowhere' is not a folder"):
        load("nowhere")
    with pytest.raises(DatasetError, match="class_files needs the folder"):
        load("")
    write(tmp_path, IMAGES)
    (tmp_path / "classes" / "1.npy").unlink()
    with pytest.raises(
        DatasetError, match=r"lacks 1 of the 3 class files, starting with 1\.npy"
    ):
        load(tmp_path)
    (tmp_path / "classes" / "1.npy").write_text("no array")
    with pytest.raises(DatasetError, match=r"1\.npy cannot be read as a NumPy array"):
        load(tmp_path)


class NumberedImages:
    """7,000 images of three classes in turn, each with its number in two pixels."""

    def __len__(self):
        return 7000

    def __getitems__(self, indices):
        assert len(indices) < 3000, "all images in memory at once"
        return [{"image": self.image(n), "label": n % 3} for n in indices]

    @staticmethod
    def image(number):
        image = np.zeros((28, 28, 1), np.uint8)
        image[0, :2, 0] = divmod(number, 256)
        return image


class FakeImageNet(FakeBuilder):
    name = "imagenet_resized/32x32"

    def as_data_source(self, split):
        assert split == "train"
        return NumberedImages()


def numbers(images):
    return 256 * images[..., 0, 0, 0].astype(int) + images[..., 0, 1, 0]


def test_the_first_images_of_each_class_are_kept_of_a_large_set(tmp_path, monkeypatch):
    """Training and test images of ImageNet come from one split, one after another."""
    monkeypatch.setattr(tfds, "builder", FakeImageNet())
    images = load(tmp_path, 2, train=700, test=10, name=FakeImageNet.name)
    wanted = np.arange(710) * 3 + np.arange(2)[:, None]
    np.testing.assert_array_equal(numbers(images.train), wanted[:, :700])
    np.testing.assert_array_equal(numbers(images.test), wanted[:, 700:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 11}, "has 10 classes, but 11 are needed"),
        ({"num_classes": 4}, "has 0 images of class 3 in its split 'train', but 5 per"),
        (
            {"num_classes": 3, "train": 2333},
            "has 2333 images of class 1 .*but 2335 per",
        ),
    ],
)
def test_too_few_classes_or_images_of_a_set_are_said(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(tfds, "builder", FakeImageNet())
    with pytest.raises(DatasetError, match=re.escape("imagenet") + ".*" + message):
        load(tmp_path, **options, name=FakeImageNet.name)


@pytest.mark.slow
@needs_cifar100
def test_real_cifar100_by_class():
    """Against the set read whole: its 100 test images of each class, in its order."""
    images = class_images.load("cifar100", str(TFDS_DIR), 3, 40, 100)
    assert images.train.shape == (3, 40, 32, 32, 3)
    whole = datasets.load("cifar100", TFDS_DIR, "test")
    for number in range(3):
        wanted = whole.images[whole.labels == number]
        np.testing.assert_array_equal(images.test[number], wanted)

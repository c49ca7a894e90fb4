"""Small data sets on disk, as TFDS prepares them, made without TensorFlow."""

import io

import numpy as np
import pytest

SIZES = [(50, 40), (40, 64), (300, 41), (37, 37), (33, 200), (64, 48)]  # Of ImageNet's pictures.


def encode(pixels, file_format="PNG"):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, file_format)
    out.seek(0)
    return out


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """The folder of 8 training and 4 test pictures, of which picture i is 10 i everywhere."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("PIL.Image")
    from tensorflow_datasets.image_classification import mnist

    def examples(first, count):
        for i in range(first, first + count):
            yield i, {"image": encode(np.full([28, 28], 10 * i, np.uint8)), "label": i % 10}

    monkeypatch.setattr(mnist.MNIST, "_split_generators", lambda self, _: {
        "train": examples(0, 8), "test": examples(8, 4)})
    mnist.MNIST(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return str(tmp_path)


@pytest.fixture
def tiny_imagenet(tmp_path, monkeypatch):
    """The folder of 6 training pictures of several sizes and 3 for validation, one of them grey."""
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

    def examples(name, count):
        rng = np.random.default_rng(count)
        for i, (width, height) in enumerate(SIZES[:count]):
            shape = (height, width) if i == 2 else (height, width, 3)
            pixels = rng.integers(0, 256, shape).astype(np.uint8)
            yield f"{name}{i}", {"image": encode(pixels, "JPEG"), "label": 100 * i, "file_name": "x"}

    builder = imagenet2012_dataset_builder.Builder
    monkeypatch.setattr(builder, "_split_generators", lambda self, _: {
        "train": examples("t", 6), "validation": examples("v", 3)})
    builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return str(tmp_path)

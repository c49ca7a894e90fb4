"""Data sets: sizes, ranges, the path through TFDS, and what errors say."""

import os
import sys

import numpy as np
import pytest

from asgd.workloads import datasets
from asgd.workloads.streaming import StreamedDataset

REAL = os.environ.get("ASGD_TFDS_DATA_DIR")


def test_digits_sizes_types_and_range():
    digits = datasets.load("digits")
    assert digits.train["image"].shape == (1437, 8, 8, 1)
    assert digits.test["image"].shape == (360, 8, 8, 1)
    for split in (digits.train, digits.test):
        assert split["image"].dtype == np.uint8
        assert split["label"].dtype == np.int32
        assert split["label"].shape == split["image"].shape[:1]
    assert digits.num_classes == 10
    assert digits.image_shape == (8, 8, 1)
    assert digits.train["image"].min() == 0
    assert digits.train["image"].max() == 255


def test_digits_splits_part_the_whole_set():
    from sklearn.datasets import load_digits

    digits, raw = datasets.load("digits"), load_digits()

    def rows(images, labels):
        return sorted(zip(map(bytes, images), labels.tolist(), strict=True))

    # Value v of 0..16 is round(v * 255 / 16), an injective map, so the rows can be compared.
    scaled = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
    expected = rows(scaled[raw.images.astype(int)].reshape(-1, 64), raw.target)
    found = rows(
        np.concatenate([digits.train["image"], digits.test["image"]]).reshape(-1, 64),
        np.concatenate([digits.train["label"], digits.test["label"]]))
    assert found == expected


def test_digits_split_is_fixed():
    first, second = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.train["image"], second.train["image"])
    # Golden: results are only comparable while everybody has this split.
    assert first.train["label"][:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    assert first.test["label"][:10].tolist() == [0, 8, 8, 9, 8, 3, 7, 5, 0, 6]
    # Every class is in the test split about equally often.
    assert np.bincount(first.test["label"], minlength=10).min() >= 25


def test_mean_is_of_the_training_images_in_units_of_one():
    digits = datasets.load("digits")
    expected = (digits.train["image"] / 255.0).mean(axis=0)
    assert digits.mean.dtype == np.float32
    np.testing.assert_allclose(digits.mean, expected, rtol=1e-6)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="cifar10, digits, mnist, imagenet, not 'cifar100'"):
        datasets.load("cifar100")


@pytest.mark.parametrize("name, shape", [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_mocked_tfds_data(name, shape):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=7):
        dataset = datasets.load(name)
        expected = list(tfds.data_source(name, split="train", download=False))
    assert dataset.train["image"].shape == (7, *shape)
    assert dataset.test["image"].shape == (7, *shape)
    for i, example in enumerate(expected):
        np.testing.assert_array_equal(dataset.train["image"][i], example["image"])
        assert dataset.train["label"][i] == example["label"]


def test_prepared_array_record_files(tiny_mnist):
    dataset = datasets.load("mnist", tiny_mnist)
    for split, numbers in ((dataset.train, range(8)), (dataset.test, range(8, 12))):
        values = split["image"][:, 5, 6, 0].tolist()
        found = sorted(zip(values, split["label"].tolist(), strict=True))
        assert found == [(10 * i, i % 10) for i in numbers]
        assert (split["image"] == split["image"][:, :1, :1]).all()


def test_streams_what_does_not_fit(tiny_mnist, monkeypatch):
    assert isinstance(datasets.load("mnist", tiny_mnist), datasets.Dataset)
    monkeypatch.setattr(datasets, "MOST_IN_MEMORY", 8 * 28 * 28)
    assert isinstance(datasets.load("mnist", tiny_mnist), datasets.Dataset)
    monkeypatch.setattr(datasets, "MOST_IN_MEMORY", 8 * 28 * 28 - 1)
    assert isinstance(datasets.load("mnist", tiny_mnist), StreamedDataset)
    assert isinstance(datasets.load("mnist", tiny_mnist, streaming="never"), datasets.Dataset)


@pytest.mark.parametrize("name, streaming, words", [
    ("mnist", "perhaps", "streaming must be one of auto, always, never, not 'perhaps'"),
    ("digits", "always", "streaming='always' is for data on disk, not for digits"),
    ("imagenet", "never", "streaming='never' is for data that fits in memory, not for imagenet"),
])
def test_what_cannot_be_streamed_or_must_be(name, streaming, words):
    with pytest.raises(ValueError, match=words):
        datasets.load(name, streaming=streaming)


def test_imagenet_not_prepared_says_what_to_fetch(tmp_path):
    with pytest.raises(datasets.DatasetNotPrepared, match=(
            r"imagenet2012 is not prepared as array_record in .*put ILSVRC2012_img_train.tar and "
            r"ILSVRC2012_img_val.tar .*downloads/manual.*tfds.builder\('imagenet2012'")):
        datasets.load("imagenet", str(tmp_path))


@pytest.mark.parametrize("name, data_dir", [("mnist", "given"), ("cifar10", "given"),
                                            ("mnist", "default")])
def test_not_prepared_says_what_to_run(name, data_dir, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    if data_dir == "default":
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        argument, expected = None, f"tfds.builder('{name}', file_format='array_record')"
    else:
        argument = str(tmp_path)
        expected = f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record')"
    with pytest.raises(datasets.DatasetNotPrepared) as caught:
        datasets.load(name, argument)
    message = str(caught.value)
    assert message.startswith(f"{name} is not prepared as array_record in ")
    assert f"{expected}.download_and_prepare()" in message
    assert "pip install tensorflow" in message
    assert "\n" not in message


@pytest.mark.parametrize("name, module, package", [
    ("digits", "sklearn", "scikit-learn"),
    ("mnist", "tensorflow_datasets", "tensorflow-datasets"),
    ("mnist", "importlib_resources", "importlib_resources"),
    ("mnist", "array_record.python.array_record_data_source", "array_record"),
])
def test_missing_package_is_named(name, module, package, tmp_path, monkeypatch):
    if package != "scikit-learn":
        pytest.importorskip("tensorflow_datasets")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}") as caught:
        datasets.load(name, str(tmp_path))
    assert "\n" not in str(caught.value)


def _rows(image_dtype=np.uint8, label_dtype=np.int32, labels=(0, 1, 2), shape=(3, 2, 2, 1)):
    return {"image": np.zeros(shape, image_dtype), "label": np.array(labels, label_dtype)}


@pytest.mark.parametrize("rows, message", [
    (_rows(image_dtype=np.float32), "train.'image'. must be non-empty uint8"),
    (_rows(shape=(3, 2, 2)), "train.'image'. must be non-empty uint8"),
    (_rows(shape=(0, 2, 2, 1), labels=()), "train.'image'. must be non-empty uint8"),
    (_rows(label_dtype=np.int64), "train.'label'. must be int32"),
    (_rows(labels=(0, 1)), "train.'label'. must be int32"),
    (_rows(labels=(0, 1, 3)), "train.'label'. must lie in 0 to 2"),
    (_rows(labels=(0, 1, -1)), "train.'label'. must lie in 0 to 2"),
    ({"image": np.zeros([3, 2, 2, 1], np.uint8)}, "train must be a dict"),
    (_rows(shape=(3, 4, 4, 1)), "test.'image'. must have the image shape"),
])
def test_bad_arrays_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        datasets.Dataset("bad", train=rows, test=_rows(), num_classes=3)


@pytest.mark.skipif(REAL is None, reason="ASGD_TFDS_DATA_DIR names no folder of prepared data")
@pytest.mark.parametrize("name, shape, sizes, train_labels, test_labels", [
    ("mnist", (28, 28, 1), (60000, 10000),
     [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
     [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ("cifar10", (32, 32, 3), (50000, 10000), [5000] * 10, [1000] * 10),
])
def test_real_data(name, shape, sizes, train_labels, test_labels):
    dataset = datasets.load(name, REAL)
    assert dataset.train["image"].shape == (sizes[0], *shape)
    assert dataset.test["image"].shape == (sizes[1], *shape)
    assert np.bincount(dataset.train["label"]).tolist() == train_labels
    assert np.bincount(dataset.test["label"]).tolist() == test_labels
    # The published channel means of the training images.
    channels = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(dataset.mean.mean(axis=(0, 1)), channels, atol=6e-5)

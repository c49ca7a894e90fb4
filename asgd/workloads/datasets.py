"""Data sets, held whole in host memory as NumPy arrays.

A gradient event names its samples by index (see `asgd.workloads.sampling`), so a data set is an
array to index rather than a stream to read: the same event always gets the same images, on any
number of devices and after any interruption.

`digits` comes with scikit-learn and needs no download. `mnist` and `cifar10` are read through
TensorFlow Datasets, which reads prepared data without TensorFlow but needs TensorFlow, and a
network, to prepare them; `load` says how when they are missing.
"""

import dataclasses
import functools
import importlib.util
import pathlib

import numpy as np

NAMES = ("cifar10", "digits", "mnist")

_DIGITS_TRAIN = 1437


class DatasetNotPrepared(ValueError):
    """The data set is known, but is not on this machine in a format that can be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with integer labels, split for training and test.

    Args:
        name: What errors and reports call the data set.
        train: `{"image": uint8 [N, H, W, C], "label": int32 [N]}`.
        test: The same for the test split, with images of the same shape.
        num_classes: Number of classes; labels are 0 to `num_classes - 1`.

    Raises:
        ValueError: If an array has another dtype or shape, or a label is out of range.

    Example:
        >>> rows = {"image": np.zeros([3, 2, 2, 1], np.uint8), "label": np.arange(3, dtype="i4")}
        >>> Dataset("zeros", train=rows, test=rows, num_classes=3).image_shape
        (2, 2, 1)
    """

    name: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int

    def __post_init__(self):
        for split in ("train", "test"):
            _check_split(split, getattr(self, split), self.num_classes)
        if self.train["image"].shape[1:] != self.test["image"].shape[1:]:
            raise ValueError(
                f"test['image'] must have the image shape of train['image'], "
                f"{self.image_shape}, not {self.test['image'].shape[1:]}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.train["image"].shape[1:]

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean of the training images, pixel by pixel: float32 [H, W, C], in units of 0 to 1.

        Subtracting it is all the preprocessing of Zhang et al., "Staleness-aware Async-SGD for
        Distributed Deep Learning" (IJCAI 2016), section 4. Computed at the first use.
        """
        images = self.train["image"]
        # Integer sums are exact, hence the same on every machine.
        total = images.sum(axis=0, dtype=np.uint64)
        return (total / (255.0 * len(images))).astype(np.float32)


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: `"digits"` (8x8x1; 1,437 training and 360 test images, a fixed split),
            `"mnist"` (28x28x1; 60,000 and 10,000) or `"cifar10"` (32x32x3; 50,000 and 10,000).
        data_dir: Folder of prepared TFDS data; None is TFDS's own default, the environment
            variable `TFDS_DATA_DIR` or else `~/tensorflow_datasets`. Not used by `"digits"`.

    Returns:
        The data set. MNIST and CIFAR-10 keep the order in which TFDS stores them.

    Raises:
        ValueError: If the name is unknown.
        DatasetNotPrepared: If TFDS has no readable copy; the message says how to make one.
        ImportError: If a package that reads the data is missing; the message names it.

    Example:
        >>> load("digits").train["image"].shape
        (1437, 8, 8, 1)
    """
    if name not in NAMES:
        raise ValueError(f"dataset name must be one of {', '.join(NAMES)}, not {name!r}")
    if name == "digits":
        return _load_digits()
    splits = {split: _load_tfds(name, split, data_dir) for split in ("train", "test")}
    return Dataset(name, **splits, num_classes=10)


def _check_split(split, rows, num_classes):
    if not isinstance(rows, dict) or set(rows) != {"image", "label"}:
        raise ValueError(f"{split} must be a dict with the keys 'image' and 'label'")
    image, label = rows["image"], rows["label"]
    if image.dtype != np.uint8 or image.ndim != 4 or image.size == 0:
        raise ValueError(f"{split}['image'] must be non-empty uint8 [N, H, W, C], "
                         f"not {image.dtype} {list(image.shape)}")
    if label.dtype != np.int32 or label.shape != image.shape[:1]:
        raise ValueError(f"{split}['label'] must be int32 [{len(image)}], "
                         f"not {label.dtype} {list(label.shape)}")
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(f"{split}['label'] must lie in 0 to {num_classes - 1}, the classes, "
                         f"not {label.min()} to {label.max()}")


def _require(module, package):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this data set needs the Python package {package}: pip install {package} "
            f"({error})") from error


def _load_digits():
    # The file that load_digits reads; importing scikit-learn would take longer than training.
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        _require("sklearn", "scikit-learn")
    path = pathlib.Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    rows = np.loadtxt(path, delimiter=",", dtype=np.int32)
    image = np.rint(rows[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = rows[:, 64]
    # The digits are stored writer by writer: a plain cut would test on unseen writers only.
    order = np.random.default_rng(0).permutation(len(image))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return Dataset("digits", {"image": image[train], "label": label[train]},
                   {"image": image[test], "label": label[test]}, num_classes=10)


def _load_tfds(name, split, data_dir):
    if importlib.util.find_spec("cv2") is None:
        _require("PIL.Image", "pillow")
    source = tfds_source(name, split, data_dir)
    first = source[0]["image"]
    image = np.empty((len(source), *first.shape), np.uint8)
    label = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        image[i] = example["image"]
        label[i] = example["label"]
    return {"image": image, "label": label}


def tfds_source(name: str, split: str, data_dir: str | None):
    """Returns the prepared examples of a TFDS data set, a sequence of dicts.

    Raises:
        DatasetNotPrepared: If TFDS has no readable copy; the message says how to make one.
        ImportError: If a package that reads the data is missing; the message names it.
    """
    # TFDS imports its readers late, and its own messages about them do not say what to install.
    tfds = _require("tensorflow_datasets", "tensorflow-datasets")
    _require("importlib_resources", "importlib_resources")
    _require("array_record.python.array_record_data_source", "array_record")
    try:
        return tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except (KeyError, NotImplementedError, ValueError) as error:
        # The three ways in which TFDS says that there is no data, or not in such a format.
        said = f"{error}".strip().partition("\n")[0]
        raise DatasetNotPrepared(
            f"{_how_to_prepare(name, data_dir)}; TFDS says: {said}") from error


def _how_to_prepare(name, data_dir):
    place = "the default TFDS folder" if data_dir is None else data_dir
    folder = "" if data_dir is None else f"data_dir='{data_dir}', "
    return (
        f"{name} is not prepared as array_record in {place}: on a machine with a network, "
        f"pip install tensorflow tensorflow-datasets, then run once python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{name}', {folder}"
        f"file_format='array_record').download_and_prepare()\" (a copy in another format cannot be "
        f"read: leave it and choose another data_dir)")

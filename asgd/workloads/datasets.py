"""Data sets by name, and those that are held whole in host memory as NumPy arrays.

A gradient event names its samples by index (see `asgd.workloads.sampling`), so a data set is
something to index, an array or files (`asgd.workloads.streaming`), rather than a stream: the same
event always gets the same images, on any number of devices and after any interruption.

`digits` comes with scikit-learn and needs no download. `mnist`, `cifar10` and `imagenet` are read
through TensorFlow Datasets, which reads prepared data without TensorFlow but needs TensorFlow, and
a network, to prepare them; `load` says how when they are missing.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from asgd.emulation import IndexedBatches
from asgd.workloads.prepared import DatasetNotPrepared, require, tfds_source

__all__ = ["Dataset", "DatasetNotPrepared", "InMemory", "load", "mean_of"]
NAMES = ("cifar10", "digits", "mnist", "imagenet")
STREAMING = ("auto", "always", "never")
MOST_IN_MEMORY = 2**31  # Bytes of training images; "auto" streams more.

_DIGITS_TRAIN = 1437


class InMemory:
    """What tasks ask of a data set, for splits that are dicts of arrays [N, ...] in host memory."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    @property
    def num_examples(self) -> int:
        """Training examples."""
        return len(next(iter(self.train.values())))

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [num_examples], or None where examples have no label."""
        return self.train.get("label")

    @property
    def example_bytes(self) -> int:
        """Bytes of one example."""
        return sum(rows[0].nbytes for rows in self.train.values())

    def batches(self, sampler: Any) -> IndexedBatches:
        """Makes the training batches of a sampler's events, which devices can gather themselves."""
        return IndexedBatches(self.train, sampler.indices)

    def test_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the test split in order, `batch_size` rows at a time; the last may have fewer."""
        for start in range(0, len(next(iter(self.test.values()))), batch_size):
            yield {name: rows[start:start + batch_size] for name, rows in self.test.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(InMemory):
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
        return mean_of(self.train["image"].sum(axis=0, dtype=np.uint64), self.num_examples)


def mean_of(total: np.ndarray, count: int) -> np.ndarray:
    """Computes the mean of uint8 images, in units of 0 to 1, from their sum."""
    # Integer sums are exact, hence the same on every machine and in any order.
    return (total / (255.0 * count)).astype(np.float32)


def load(name: str, data_dir: str | None = None, *, streaming: str = "auto", image_size: int = 224,
         augment: bool = False, read_threads: int = 16, prefetch: int = 16):
    """Loads a data set by name.

    Args:
        name: `"digits"` (8x8x1; 1,437 training and 360 test images, a fixed split),
            `"mnist"` (28x28x1; 60,000 and 10,000), `"cifar10"` (32x32x3; 50,000 and 10,000) or
            `"imagenet"` (TFDS's imagenet2012; 1,281,167 and 50,000, its validation split).
        data_dir: Folder of prepared TFDS data; None is TFDS's own default, the environment
            variable `TFDS_DATA_DIR` or else `~/tensorflow_datasets`. Not used by `"digits"`.

    Other args:
        streaming: `"always"` leaves the examples on disk and reads batches as they are asked for,
            `"never"` reads all of them now, and `"auto"` streams ImageNet, and others where the
            training images have more than `MOST_IN_MEMORY` bytes. Batches are the same.
        image_size: Of ImageNet: pixels of a side of what is cut from an image.
        augment: Of ImageNet: cut at random from training images, and mirror them.
        read_threads: Batches read side by side, when streaming.
        prefetch: Batches read ahead, when streaming.

    Returns:
        A `Dataset`, or a `asgd.workloads.streaming.StreamedDataset`. Both keep the order in which
        TFDS stores the examples.

    Raises:
        ValueError: If the name is unknown or cannot be read so.
        DatasetNotPrepared: If TFDS has no readable copy; the message says how to make one.
        ImportError: If a package that reads the data is missing; the message names it.

    Example:
        >>> load("digits").train["image"].shape
        (1437, 8, 8, 1)
    """
    if name not in NAMES:
        raise ValueError(f"dataset name must be one of {', '.join(NAMES)}, not {name!r}")
    if streaming not in STREAMING:
        raise ValueError(f"streaming must be one of {', '.join(STREAMING)}, not {streaming!r}")
    if name == "digits":
        if streaming == "always":
            raise ValueError("streaming='always' is for data on disk, not for digits")
        return _load_digits()
    if name == "imagenet" and streaming == "never":
        raise ValueError("streaming='never' is for data that fits in memory, not for imagenet")
    if importlib.util.find_spec("cv2") is None or name == "imagenet":
        require("PIL.Image", "pillow")
    from asgd.workloads import images, streaming as streamed

    threads = dict(threads=read_threads, prefetch=prefetch)
    if name == "imagenet":
        splits = {ours: tfds_source("imagenet2012", theirs, data_dir, encoded=True)
                  for ours, theirs in (("train", "train"), ("test", "validation"))}
        return streamed.StreamedDataset(
            name, **splits, num_classes=1000, crops=images.Crops(image_size, augment),
            channel_mean=images.IMAGENET_MEAN, **threads)
    splits = {split: tfds_source(name, split, data_dir) for split in ("train", "test")}
    size = len(splits["train"]) * splits["train"][0]["image"].nbytes
    if streaming == "always" or (streaming == "auto" and size > MOST_IN_MEMORY):
        return streamed.StreamedDataset(name, **splits, num_classes=10, **threads)
    return Dataset(name, **{split: _read(source) for split, source in splits.items()}, num_classes=10)


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


def _load_digits():
    # The file that load_digits reads; importing scikit-learn would take longer than training.
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        require("sklearn", "scikit-learn")
    path = pathlib.Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    rows = np.loadtxt(path, delimiter=",", dtype=np.int32)
    image = np.rint(rows[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = rows[:, 64]
    # The digits are stored writer by writer: a plain cut would test on unseen writers only.
    order = np.random.default_rng(0).permutation(len(image))
    train, test = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return Dataset("digits", {"image": image[train], "label": label[train]},
                   {"image": image[test], "label": label[test]}, num_classes=10)


def _read(source):
    first = source[0]["image"]
    image = np.empty((len(source), *first.shape), np.uint8)
    label = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        image[i] = example["image"]
        label[i] = example["label"]
    return {"image": image, "label": label}

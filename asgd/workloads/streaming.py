"""Data sets that stay on disk: batches are read when their events need them.

For data of any size: host memory holds the batches that are read ahead, and 4 bytes an example for
the order of a pass.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asgd.workloads import datasets
from asgd.workloads.images import Crops
from asgd.workloads.read_ahead import ReadAhead

_CROPS = 1  # With a third word of entropy, crops and a pass's permutation never draw alike.
_BYTES_OF_A_PIECE = 2**22


class StreamedDataset:
    """Images with integer labels, read at random from files, one event's batch at a time.

    Its batches are those of a `Dataset` of the same examples, bit for bit.

    Args:
        name: What errors and reports call the data set.
        train: The examples, `{"image": uint8 [H, W, C], "label": int}`, as TFDS's data sources are:
            a sequence that is read in several threads.
        test: The same for the test split.
        num_classes: Number of classes; labels are 0 to `num_classes - 1`.

    Other args:
        crops: How images of one size are cut; `image` is then an encoded picture of any size.
        channel_mean: Mean of each channel, in units of 0 to 1; None computes that of each pixel of
            the training images, at its first use, in a pass over them.
        threads: Batches read side by side.
        prefetch: Batches read ahead.

    Attributes:
        image_shape: Height, width and channels of one image.
        num_examples: Training examples.

    Example:
        >>> rows = [{"image": np.full([2, 2, 1], i, np.uint8), "label": i} for i in range(3)]
        >>> data = StreamedDataset("three", rows, rows, num_classes=3)
        >>> data.labels.tolist(), [batch["label"].tolist() for batch in data.test_batches(2)]
        ([0, 1, 2], [[0, 1], [2]])
    """

    def __init__(self, name: str, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]],
                 num_classes: int, *, crops: Crops | None = None,
                 channel_mean: Sequence[float] | None = None, threads: int = 16,
                 prefetch: int = 16):
        self.name, self.num_classes, self.num_examples = name, num_classes, len(train)
        self._splits, self._crops, self._channel_mean = {"train": train, "test": test}, crops, channel_mean
        self._ahead = dict(threads=threads, prefetch=prefetch)
        self.image_shape = self._example("train", 0)["image"].shape

    @property
    def example_bytes(self) -> int:
        """Bytes of one example."""
        return int(np.prod(self.image_shape)) + 4

    @property
    def mean(self) -> np.ndarray:
        """What is subtracted from images, in units of 0 to 1: float32 [H, W, C] or [C]."""
        if self._channel_mean is not None:
            return np.asarray(self._channel_mean, np.float32)
        return self._pass[0]

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [num_examples]; None with crops, as it takes a pass over the images."""
        return None if self._crops else self._pass[1]

    def batches(self, sampler: Any) -> ReadAhead:
        """Makes the training batches of events.

        With crops, what is cut is drawn from the sampler's seed, the event and the place in its
        batch, and from nothing else.

        Args:
            sampler: Which samples each event uses; an `EventSampler` or `AgentSampler`.

        Returns:
            A function from event numbers [n] to `{"image": uint8 [n, b, H, W, C], "label":
            int32 [n, b]}`. It raises RuntimeError for an example that cannot be read, naming it.
        """
        def read(event):
            indices = sampler.indices(np.array([event]))[0]
            draws = [None] * len(indices)
            if self._crops:
                generator = np.random.default_rng(
                    np.random.SeedSequence([sampler.seed, event, _CROPS]))
                draws = generator.random((len(indices), self._crops.num_draws))
            return self._rows("train", indices, draws)

        return ReadAhead(read, **self._ahead)

    def test_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the test split in order, `batch_size` rows at a time; the last may have fewer."""
        return self._in_order("test", batch_size)

    @functools.cached_property
    def _pass(self):
        total, labels = np.zeros(self.image_shape, np.uint64), []
        for rows in self._in_order("train", max(1, _BYTES_OF_A_PIECE // self.example_bytes)):
            total += rows["image"].sum(axis=0, dtype=np.uint64)
            labels.append(rows["label"])
        return datasets.mean_of(total, self.num_examples), np.concatenate(labels)

    def _in_order(self, split, size):
        count = len(self._splits[split])
        pieces = ReadAhead(
            lambda piece: self._rows(split, range(piece * size, min(count, (piece + 1) * size))),
            **self._ahead)
        return pieces.in_order(np.arange(-(-count // size)))

    def _rows(self, split, indices, draws=None):
        out = {"image": np.empty((len(indices), *self.image_shape), np.uint8),
               "label": np.empty(len(indices), np.int32)}
        for place, index in enumerate(indices):
            example = self._example(split, index, None if draws is None else draws[place])
            out["image"][place], out["label"][place] = example["image"], example["label"]
        return out

    def _example(self, split, index, draws=None):
        try:
            example = self._splits[split][int(index)]
            image, label = example["image"], int(example["label"])
            image = np.asarray(image) if self._crops is None else self._crops(image, draws)
            if not 0 <= label < self.num_classes:
                raise ValueError(f"its label must lie in 0 to {self.num_classes - 1}, not {label}")
            shape = getattr(self, "image_shape", image.shape)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape != shape:
                raise ValueError(f"its image must be uint8 {list(shape)}, not {image.dtype} "
                                 f"{list(image.shape)}")
            return {"image": image, "label": label}
        except Exception as error:  # Whatever files and decoders raise.
            raise RuntimeError(f"example {index} of the {split} split of {self.name} cannot be read: "
                               f"{error}") from error

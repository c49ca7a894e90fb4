"""Rows that are read by Grain's threads before they are asked for."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from asgd.workloads.prepared import require

Row = dict[str, np.ndarray]


class ReadAhead:
    """Batches of events as a function of their numbers, which reads ahead what is expected.

    A row is a function of its number alone, so that reading ahead changes no bit and has nothing to
    save: who goes on at event e expects the numbers from e. Memory is that of the rows read ahead,
    however many there are.

    Threads, as decoding a picture lets go of Python's lock.

    Args:
        read: Function from a number to a row, a dict of arrays; called in several threads.
        threads: Rows read side by side, at most `prefetch`; 0 reads only what is asked for.
        prefetch: Rows read ahead; 0 likewise.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> squares = ReadAhead(lambda number: {"x": np.array([number**2])}, threads=2, prefetch=4)
        >>> squares.expect(np.arange(100))
        >>> squares(np.arange(2))["x"].tolist(), squares(np.array([70]))["x"].tolist()
        ([[0], [1]], [[4900]])
        >>> squares.close()
    """

    def __init__(self, read: Callable[[int], Row], threads: int = 16, prefetch: int = 16):
        for name, value in (("threads", threads), ("prefetch", prefetch)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        self._read = read
        self._threads, self._prefetch = min(threads, prefetch), prefetch
        self._lock = threading.Lock()
        self._expected, self._rows = np.zeros(0, np.int64), None

    def __reduce__(self):
        # What is read ahead stays behind, where actors get a copy.
        return ReadAhead, (self._read, self._threads, self._prefetch)

    def expect(self, numbers: np.ndarray) -> None:
        """Reads ahead these numbers, which will be asked for in this order, in consecutive pieces.

        It replaces what was expected. If that is what is left of it, reading goes on, and nothing
        is read twice.

        Args:
            numbers: Integers [n].
        """
        numbers = _checked(numbers)
        with self._lock:
            if self._rows is None or not np.array_equal(numbers, self._expected):
                self._stop()
                if len(numbers):
                    self._expected, self._rows = numbers, self._start(numbers)

    def __call__(self, numbers: np.ndarray) -> Row:
        """Returns the rows of some numbers: those read ahead, or if others are expected, reads them.

        Args:
            numbers: Integers [n], at least one.

        Returns:
            Arrays with a leading axis [n].
        """
        numbers = _checked(numbers)
        if not len(numbers):
            raise ValueError("numbers must be at least one")
        with self._lock:
            count = len(numbers)
            if self._rows is not None and np.array_equal(numbers, self._expected[:count]):
                try:
                    out = _stacked(itertools.islice(self._rows, count), count)
                    self._expected = self._expected[count:]
                    return out
                except BaseException:
                    self._stop()
                    raise
        return _stacked(map(self._read, numbers.tolist()), count)

    def in_order(self, numbers: np.ndarray) -> Iterator[Row]:
        """Yields the rows of some numbers one by one, reading ahead."""
        rows = self._start(_checked(numbers))
        try:
            yield from rows
        finally:
            rows.close()

    def close(self) -> None:
        """Expects nothing any more; what is being read is finished, but not waited for."""
        with self._lock:
            self._stop()

    def _start(self, numbers):
        grain = require("grain", "grain")
        rows = iter(grain.MapDataset.source(numbers).map(lambda number: self._read(int(number)))
                    .to_iter_dataset(grain.ReadOptions(self._threads, self._prefetch)))
        rows.start_prefetch()
        return rows

    def _stop(self):
        if self._rows is not None:
            self._rows.close()
        self._expected, self._rows = np.zeros(0, np.int64), None


def _checked(numbers):
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or not (numbers.size == 0 or np.issubdtype(numbers.dtype, np.integer)):
        raise ValueError(f"numbers must be a one-dimensional array of integers, "
                         f"not {numbers.dtype} {list(numbers.shape)}")
    return numbers.astype(np.int64)


def _stacked(rows: Iterable[Row], count: int) -> Row:
    # One by one, as all of them beside their stack would take twice the memory.
    out = {}
    for place, row in enumerate(rows):
        for name, array in row.items():
            if not place:
                out[name] = np.empty((count, *array.shape), array.dtype)
            out[name][place] = array
    return out

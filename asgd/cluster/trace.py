"""`Trace`: who computed which gradient on which version, and when it arrived."""

import dataclasses
import functools
import json
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from asgd.cluster import statistics, storage
from asgd.cluster.checks import MOST_WORKERS, show

_INT32 = np.iinfo(np.int32)


def _refuse(field: str, bad: np.ndarray, values: np.ndarray, allowed: str) -> None:
    """Raises ValueError for the first row where `bad`."""
    if bad.any():
        row = int(np.argmax(bad))
        value = values[row].item()
        raise ValueError(f"{field} at row {row} is {value!r}; it must be {allowed}")


def _column(field: str, values: Any, kinds: str, length: int | None) -> np.ndarray:
    """Returns a one-dimensional array of one of the dtype kinds, an empty one as float64."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{field} must be one-dimensional") from error
    if array.ndim != 1:
        raise ValueError(f"{field} must be one-dimensional, but has shape {array.shape}")
    if length is not None and len(array) != length:
        raise ValueError(f"{field} has {len(array)} rows but worker has {length}")
    if len(array) and array.dtype.kind not in kinds:
        what = {"iuf": "numbers", "biuf": "True or False, or 0 or 1"}[kinds]
        raise ValueError(f"{field} must hold {what}, not {array.dtype}")
    return array if len(array) else np.zeros(0)


def _integers(field: str, values: Any, length: int | None = None) -> np.ndarray:
    array = _column(field, values, "iuf", length)
    if array.dtype.kind == "f":
        _refuse(field, ~(np.rint(array) == array), array, "an integer")
    bad = (array < _INT32.min) | (array > _INT32.max)
    _refuse(field, bad, array, f"within int32, at most {_INT32.max}")
    return array.astype(np.int32)


def _bools(field: str, values: Any, length: int) -> np.ndarray:
    array = _column(field, values, "biuf", length)
    if array.dtype.kind != "b":
        _refuse(field, (array != 0) & (array != 1), array, "True or False, or 0 or 1")
    return array.astype(bool)


def _times(field: str, values: Any, length: int) -> np.ndarray:
    array = _column(field, values, "iuf", length).astype(np.float64)
    _refuse(field, ~np.isfinite(array), array, "a finite time in seconds")
    return array


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Gradient events of a run in arrival order, one row each; T rows in all.

    Sequences are converted to read-only NumPy arrays `[T]` and every invariant is checked. All
    but `worker` and `read_version` may be left out. Two traces are equal if all fields are.

    Attributes:
        worker: int32, who computed the gradient.
        read_version: int32, version of the snapshot that it was computed on.
        version: int32, server version when it arrives, which starts at 0 and grows by
            `updates`. Default: what follows from `updates`.
        applied: bool, False if the server dropped it. Default: all True.
        updates: bool, whether the server makes an update right after it. Default: `applied`.
        start_time: float64, virtual seconds when its snapshot was read. Default: when the event
            that created `read_version` arrived, 0 for version 0.
        finish_time: float64, virtual seconds when it arrived, in non-decreasing order.
            Default: 1, 2, ..., T.
        num_workers: Default: the largest worker + 1.
        metadata: JSON-able dict: what was simulated, or where the trace was recorded.
        batch: int32, number of the mini-batch that it was computed on: its data and its random key
            are functions of this number. A real worker draws a batch before anybody knows how many
            gradients will arrive before its own. Default: 0, 1, ..., T - 1.

    Raises:
        ValueError: Names the field, the first offending row, counted from 0, and what it may be.

    Example:
        >>> trace = Trace(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2])
        >>> trace.version.tolist(), trace.staleness.tolist()
        ([0, 1, 2, 3], [0, 1, 1, 1])
        >>> Trace(worker=[0, 1], read_version=[0, -2])
        Traceback (most recent call last):
        ...
        ValueError: read_version at row 1 is -2; it must be >= 0
    """

    worker: Sequence[int]
    read_version: Sequence[int]
    version: Sequence[int] | None = None
    applied: Sequence[bool] | None = None
    updates: Sequence[bool] | None = None
    start_time: Sequence[float] | None = None
    finish_time: Sequence[float] | None = None
    num_workers: int | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch: Sequence[int] | None = None

    __hash__ = None

    def __post_init__(self):
        worker = _integers("worker", self.worker)
        length = len(worker)
        read_version = _integers("read_version", self.read_version, length)
        num_workers = self.num_workers
        if num_workers is None:
            num_workers = int(worker.max(initial=0)) + 1
        if (
            isinstance(num_workers, bool)
            or not isinstance(num_workers, numbers.Integral)
            or num_workers < 1
        ):
            raise ValueError(f"num_workers must be an integer >= 1, not {show(num_workers)}")
        if num_workers > MOST_WORKERS:
            raise ValueError(f"num_workers must be at most {MOST_WORKERS}, not {num_workers}; it is the "
                             "largest worker + 1 unless it is given")
        bad = (worker < 0) | (worker >= num_workers)
        _refuse("worker", bad, worker, f"in [0, num_workers={num_workers})")

        applied = np.ones(length, bool)
        if self.applied is not None:
            applied = _bools("applied", self.applied, length)
        updates = applied.copy()
        if self.updates is not None:
            updates = _bools("updates", self.updates, length)
        _refuse("updates", updates & ~applied, updates, "False where the gradient is not applied")
        version = (np.cumsum(updates) - updates).astype(np.int32)
        if self.version is not None:
            given = _integers("version", self.version, length)
            for row in np.flatnonzero(given != version)[:1]:
                rule = "version + updates of the row before" if row else "the first version"
                _refuse("version", given != version, given, f"{version[row]}, {rule}")
        _refuse("read_version", read_version < 0, read_version, ">= 0")
        for row in np.flatnonzero(read_version > version)[:1]:
            allowed = (
                f"at most the version it arrives at, {version[row]}: a version that does not "
                "exist yet would give a negative staleness"
            )
            _refuse("read_version", read_version > version, read_version, allowed)

        finish_time = np.arange(1.0, length + 1)
        if self.finish_time is not None:
            finish_time = _times("finish_time", self.finish_time, length)
        unsorted = np.zeros(length, bool)
        unsorted[1:] = finish_time[1:] < finish_time[:-1]
        _refuse("finish_time", unsorted, finish_time, "at least that of the row before")
        if self.start_time is None:
            start_time = np.concatenate([[0.0], finish_time[updates]])[read_version]
        else:
            start_time = _times("start_time", self.start_time, length)
        _refuse("start_time", start_time > finish_time, start_time, "at most finish_time")

        batch = np.arange(length, dtype=np.int32)
        if self.batch is not None:
            batch = _integers("batch", self.batch, length)
        _refuse("batch", batch < 0, batch, ">= 0")

        columns = {
            "worker": worker,
            "read_version": read_version,
            "version": version,
            "applied": applied,
            "updates": updates,
            "start_time": start_time,
            "finish_time": finish_time,
            "batch": batch,
        }
        for name, column in columns.items():
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        object.__setattr__(self, "num_workers", int(num_workers))
        object.__setattr__(self, "metadata", _json_dict(self.metadata))

    def __len__(self) -> int:
        return len(self.worker)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            if field.name in storage.COLUMNS
            else getattr(self, field.name) == getattr(other, field.name)
            for field in dataclasses.fields(self)
        )

    def __repr__(self) -> str:
        counts = f"{len(self)} gradients, {self.num_workers} workers, {self.num_updates} updates"
        return f"Trace({counts})"

    def __str__(self) -> str:
        return self.describe()

    @functools.cached_property
    def staleness(self) -> np.ndarray:
        """int32 `[T]`: updates between reading and arrival, `version - read_version`."""
        staleness = self.version - self.read_version
        staleness.setflags(write=False)
        return staleness

    @functools.cached_property
    def delay(self) -> np.ndarray:
        """float64 `[T]`: virtual seconds between reading and arrival."""
        delay = self.finish_time - self.start_time
        delay.setflags(write=False)
        return delay

    @property
    def num_updates(self) -> int:
        """How many updates the server makes; parameters end at this version."""
        return int(np.count_nonzero(self.updates))

    def head(self, num_gradients: int) -> "Trace":
        """Returns the trace of the first `num_gradients` events."""
        columns = {name: getattr(self, name)[:num_gradients] for name in storage.COLUMNS}
        return dataclasses.replace(self, **columns)

    summary = statistics.summary
    staleness_histogram = statistics.staleness_histogram
    per_worker = statistics.per_worker
    describe = statistics.describe
    save = storage.save

    @classmethod
    def load(cls, path) -> "Trace":
        """Reads a trace written by `save`; ValueError if the file is anything else."""
        return storage.build(cls, path, storage.load(path))

    @classmethod
    def from_csv(cls, path, num_workers: int | None = None) -> "Trace":
        """Reads a log of a real cluster.

        Args:
            path: A CSV file whose header row has names of fields. `worker` and `read_version`
                must be there, `version`, `applied`, `updates`, `start_time`, `finish_time` and
                `batch` may be. Booleans are 0, 1, true or false.
            num_workers: Default: the largest worker + 1.

        Raises:
            ValueError: Names the column and the row, counted from 0 without the header.
        """
        fields = {**storage.read_csv(path), "num_workers": num_workers}
        return storage.build(cls, path, fields)


def _json_dict(metadata: Any) -> dict[str, Any]:
    """Returns a copy as JSON would give it back, so that saving and loading changes nothing."""
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a dict that JSON can hold, not {show(metadata)}")
    try:
        return json.loads(json.dumps(metadata, allow_nan=False))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"metadata must be a dict that JSON can hold: {error}") from error

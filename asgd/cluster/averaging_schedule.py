"""Local steps and what happens between them, as data: the trace of training by averaging."""

import dataclasses
from typing import Any

import numpy as np

from asgd.cluster import storage
from asgd.cluster.checks import MOST_WORKERS, show

# What happens between gradients.
TAKE, RELEASE, MERGE, MEASURE = range(4)
_GRADIENTS = {"worker": np.int32, "start_time": np.float64, "finish_time": np.float64}
_ACTIONS = {"after": np.int64, "action": np.int8, "member": np.int32, "time": np.float64}
_COLUMNS = {**_GRADIENTS, **_ACTIONS}


@dataclasses.dataclass(frozen=True, eq=False)
class AveragingSchedule:
    r"""Local gradients and what happens between them, as data: saved, loaded and replayed.

    Worker w has parameters :math:`x_w` and the point :math:`b_w` from which its pending update is
    counted; the server has x. The actions are

    * ``TAKE`` (worker w): :math:`x_w \leftarrow x + (x_w - b_w)`, :math:`b_w \leftarrow x`;
    * ``RELEASE`` (worker w): :math:`x_w - b_w` goes to the server, :math:`b_w \leftarrow x_w`;
    * ``MERGE``: the server adds the mean of what was released since the last merge to x;
    * ``MEASURE``: the distance between the workers is recorded.

    Attributes:
        num_workers: N.
        worker: int32 [T], who computes gradient e.
        start_time: float64 [T], virtual seconds.
        finish_time: float64 [T].
        after: int64 [K], how many gradients come before action k, 1 or more; never falls.
        action: int8 [K].
        member: int32 [K], the worker of a ``TAKE`` or ``RELEASE``, else 0.
        time: float64 [K], virtual seconds; of a ``MERGE``, when the copy is with the workers.
        kind: what made it, such as ``"cyclic"``; "" for a schedule of one's own.
    """

    num_workers: int
    worker: np.ndarray
    start_time: np.ndarray
    finish_time: np.ndarray
    after: np.ndarray
    action: np.ndarray
    member: np.ndarray
    time: np.ndarray
    kind: str = ""

    def __post_init__(self):
        check_whole("num_workers", self.num_workers, 1)
        if self.num_workers > MOST_WORKERS:
            raise ValueError(f"num_workers must be at most {MOST_WORKERS}, got {show(self.num_workers)}")
        for name, dtype in _COLUMNS.items():
            column = np.asarray(getattr(self, name))
            kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
            if column.ndim != 1 or len(column) and column.dtype.kind not in kinds:
                raise ValueError(f"{name} must be a vector of {dtype.__name__}, not "
                                 f"{column.dtype} {list(column.shape)}")
            object.__setattr__(self, name, column)
        for names in (_GRADIENTS, _ACTIONS):
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"{', '.join(names)} must be equally long, not {lengths}")
        for name, least, most in (("worker", 0, self.num_workers - 1),
                                  ("member", 0, self.num_workers - 1), ("action", 0, MEASURE),
                                  ("after", 1, len(self.worker))):
            column = getattr(self, name)
            _refuse(name, column, (column < least) | (column > most), f"must be {least} to {most}")
        for name, dtype in _COLUMNS.items():
            column = getattr(self, name).astype(dtype)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        _refuse("after", self.after, np.diff(self.after, prepend=0) < 0, "is less than before")
        for name in ("start_time", "time"):
            column = getattr(self, name)
            _refuse(name, column, ~(column >= 0) | np.isinf(column), "must be finite, 0 or more")
        times = self.start_time, self.finish_time
        _refuse("finish_time", times[1], ~(times[1] >= times[0]) | np.isinf(times[1]),
                "must be finite and not before start_time")
        _refuse("start_time", times[0], self.waits < 0, "is before the worker's last finish_time")

    def __len__(self) -> int:
        return len(self.worker)

    def __eq__(self, other):
        if not isinstance(other, AveragingSchedule):
            return NotImplemented
        return (self.num_workers, self.kind) == (other.num_workers, other.kind) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _COLUMNS)

    @property
    def num_merges(self) -> int:
        return int(np.count_nonzero(self.action == MERGE))

    @property
    def num_measured(self) -> int:
        return int(np.count_nonzero(self.action == MEASURE))

    @property
    def drift(self) -> np.ndarray:
        """int32 [T], by how many own gradients a worker is ahead of its copy after each one."""
        out = np.zeros(len(self), np.int32)
        ahead, pending = [0] * self.num_workers, [0] * self.num_workers
        actions = zip(self.after.tolist(), self.action.tolist(), self.member.tolist())
        upcoming = next(actions, None)
        for event, worker in enumerate(self.worker.tolist()):
            while upcoming and upcoming[0] <= event:
                _, action, member = upcoming
                if action == TAKE:
                    ahead[member] = pending[member]
                elif action == RELEASE:
                    pending[member] = 0
                upcoming = next(actions, None)
            ahead[worker] += 1
            pending[worker] += 1
            out[event] = ahead[worker]
        return out

    @property
    def waits(self) -> np.ndarray:
        """float64 [T], how long its worker was idle before each gradient."""
        before = self._before()
        return self.start_time - np.where(before < 0, 0.0, self.finish_time[before])

    def earliest(self, moved_by: tuple[int, ...] = (TAKE,)) -> np.ndarray:
        """int64 [T], how many gradients must be applied before each can be computed.

        Args:
            moved_by: the actions that change a worker's parameters.
        """
        out = self._before() + 1
        # The last such action before: both in order of worker and place.
        taken = np.flatnonzero(np.isin(self.action, moved_by))
        keys = self.member[taken] * np.int64(len(self) + 1) + self.after[taken]
        order = np.argsort(keys, kind="stable")
        last = np.searchsorted(
            keys[order], self.worker * np.int64(len(self) + 1) + np.arange(len(self)), side="right") - 1
        if len(taken):
            found = taken[order[np.maximum(last, 0)]]
            mine = (last >= 0) & (self.member[found] == self.worker)
            out = np.maximum(out, np.where(mine, self.after[found], 0))
        return out

    def _before(self):
        """Returns the same worker's gradient before each one, or -1."""
        order = np.argsort(self.worker, kind="stable")
        same = self.worker[order][1:] == self.worker[order][:-1]
        out = np.full(len(self), -1)
        out[order[1:][same]] = order[:-1][same]
        return out

    def head(self, num_gradients: int) -> "AveragingSchedule":
        """Returns the first gradients, and all that happens before the next one arrives."""
        kept = self.after <= num_gradients
        return dataclasses.replace(
            self, **{name: getattr(self, name)[:num_gradients] for name in _GRADIENTS},
            **{name: getattr(self, name)[kept] for name in _ACTIONS})

    def save(self, path: Any) -> None:
        """Writes an `.npz` archive, atomically."""
        storage.write_npz(path, {
            "num_workers": np.int64(self.num_workers), "kind": np.array(self.kind),
            **{name: getattr(self, name) for name in _COLUMNS}})

    @classmethod
    def load(cls, path: Any) -> "AveragingSchedule":
        """Reads what `save` wrote; ValueError naming the path if the file is another."""
        fields = storage.read_npz(path, ("num_workers", "kind", *_COLUMNS), "an averaging schedule")
        try:
            num_workers = storage.scalar("num_workers", fields.pop("num_workers"), "iu")
            return cls(num_workers, kind=storage.scalar("kind", fields.pop("kind"), "U"), **fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __str__(self):
        drift, busy = self.drift, (self.finish_time - self.start_time).sum()
        idle = self.waits.sum() / max(busy + self.waits.sum(), np.finfo(float).tiny)
        return (f"{len(self)} gradients of {self.num_workers} workers, {self.num_merges} merges; "
                f"drift {drift.mean() if len(self) else 0:.3g} on average, "
                f"{drift.max(initial=0)} at most; idle {100 * idle:.3g} % of the time")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless the value is an integer, ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")


def _refuse(name, array, bad, why):
    places = np.flatnonzero(bad)
    if places.size:
        raise ValueError(f"{name}[{places[0]}] is {array[places[0]]}: {why}")

"""Who computes when and when updates are averaged: the trace of training by local steps (paper D).

Example:
    >>> schedule = cyclic(num_workers=2, num_steps=6, period=2)
    >>> print(schedule)
    12 gradients of 2 workers, 3 merges; drift 2.83 on average, 4 at most; idle 0 % of the time
"""

import dataclasses
import heapq
from typing import Any, Optional

import numpy as np

from asgd.cluster import storage, timing as timing_lib
from asgd.cluster.simulate import Cluster

# What happens between gradients.
TAKE, RELEASE, MERGE, MEASURE = range(4)
_GRADIENTS = {"worker": np.int32, "start_time": np.float64, "finish_time": np.float64}
_ACTIONS = {"after": np.int64, "action": np.int8, "member": np.int32}
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
        after: int64 [K], how many gradients come before action k; never falls.
        action: int8 [K].
        member: int32 [K], the worker of a ``TAKE`` or ``RELEASE``, else 0.
    """

    num_workers: int
    worker: np.ndarray
    start_time: np.ndarray
    finish_time: np.ndarray
    after: np.ndarray
    action: np.ndarray
    member: np.ndarray

    def __post_init__(self):
        for name, dtype in _COLUMNS.items():
            column = np.asarray(getattr(self, name))
            kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
            if column.ndim != 1 or column.size and column.dtype.kind not in kinds:
                raise ValueError(f"{name} must be a vector of {dtype.__name__}, not "
                                 f"{column.dtype} {list(column.shape)}")
            column = column.astype(dtype)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        for names in (_GRADIENTS, _ACTIONS):
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"{', '.join(names)} must be equally long, not {lengths}")
        for name, upper in (("worker", self.num_workers), ("member", self.num_workers),
                            ("action", MEASURE + 1), ("after", len(self.worker) + 1)):
            column = getattr(self, name)
            _refuse(name, column, (column < 0) | (column >= upper), f"must be 0 to {upper - 1}")
        _refuse("after", self.after, np.diff(self.after, prepend=0) < 0, "is less than before")
        times = self.start_time, self.finish_time
        _refuse("finish_time", times[1], ~(times[1] >= times[0]) | ~np.isfinite(times[1]),
                "must be finite and not before start_time")

    def __len__(self) -> int:
        return len(self.worker)

    def __eq__(self, other):
        if not isinstance(other, AveragingSchedule):
            return NotImplemented
        return self.num_workers == other.num_workers and all(
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

    def earliest(self) -> np.ndarray:
        """int64 [T], how many gradients must be applied before each can be computed."""
        out = self._before() + 1
        # The last copy that was taken before: both in order of worker and place.
        taken = np.flatnonzero(self.action == TAKE)
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
        """Returns the first gradients, and what happens between them and right after the last."""
        kept = self.after <= num_gradients
        return AveragingSchedule(
            self.num_workers, *(getattr(self, name)[:num_gradients] for name in _GRADIENTS),
            *(getattr(self, name)[kept] for name in _ACTIONS))

    def save(self, path: Any) -> None:
        """Writes an `.npz` archive, atomically."""
        storage.write_npz(path, {"num_workers": np.int64(self.num_workers),
                                 **{name: getattr(self, name) for name in _COLUMNS}})

    @classmethod
    def load(cls, path: Any) -> "AveragingSchedule":
        """Reads what `save` wrote; ValueError naming the path if the file is another."""
        fields = storage.read_npz(path, ("num_workers", *_COLUMNS), "an averaging schedule")
        try:
            return cls(int(fields.pop("num_workers")), **fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def __str__(self):
        drift, busy = self.drift, (self.finish_time - self.start_time).sum()
        idle = self.waits.sum() / max(busy + self.waits.sum(), np.finfo(float).tiny)
        return (f"{len(self)} gradients of {self.num_workers} workers, {self.num_merges} merges; "
                f"drift {drift.mean() if len(self) else 0:.3g} on average, "
                f"{drift.max(initial=0)} at most; idle {100 * idle:.3g} % of the time")


def cyclic(num_workers: int, num_steps: int, period: int, *, delay: Optional[int] = None,
           timing: Any = None, merge_time: float = 0.0, takes: bool = True,
           seed: int = 0) -> AveragingSchedule:
    """Averaging in cycles: every worker releases its update after each ``period`` steps.

    The copy that includes it is taken ``delay`` steps later. With ``delay=period`` that is paper
    D's Algorithm 2; with 0 local SGD; in between overlapped local SGD.

    Args:
        num_workers: N.
        num_steps: local gradients of each worker. Gradient ``t * N + w`` is worker w's in step t.
        period: steps of a cycle, 1 or more.
        delay: steps from releasing to taking, 0 to ``period``, by default ``period``.
        timing: computing times, a `Timing` or a `Distribution`; by default constant, 1 second.
        merge_time: seconds from the last worker's release until all have the copy. A worker that
            needs it earlier waits.
        takes: whether workers go on from the server's copy; see `independent`.
        seed: of the computing times.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> schedule = cyclic(num_workers=1, num_steps=4, period=2, merge_time=3.0)
        >>> print(schedule.waits, schedule.drift)  # Step 4 would take the copy of step 2.
        [0. 0. 0. 0.] [1 2 3 4]
    """
    delay = period if delay is None else delay
    for name, value, least in (("num_workers", num_workers, 1), ("num_steps", num_steps, 0),
                               ("period", period, 1), ("delay", delay, 0)):
        _whole(name, value, least)
    if delay > period:
        raise ValueError(f"delay must be 0 to period={period}, got {delay}")
    _seconds("merge_time", merge_time)
    cluster = Cluster(timing_lib.constant(1.0) if timing is None else timing, num_workers, seed)
    durations = np.stack([cluster.durations(w, num_steps) for w in range(num_workers)], axis=1)
    start, free = np.zeros((num_steps, num_workers)), np.zeros(num_workers)
    actions, everybody = [], range(num_workers)
    ready = None  # When the copy that is under way is there.
    for step in range(num_steps + 1):
        after = step * num_workers
        releases = step > 0 and step % period == 0
        if ready is not None and delay and step % period == delay % period:
            free = np.maximum(free, ready)
            ready = None
            actions += [(after, TAKE, w) for w in everybody if takes]
            if not releases:
                actions.append((after, MEASURE, 0))
        if releases:
            actions += [(after, RELEASE, w) for w in everybody] + [(after, MERGE, 0)]
            ready = free.max() + merge_time
            if not delay:
                free = np.full(num_workers, ready)
                actions += [(after, TAKE, w) for w in everybody if takes]
            if delay in (0, period):
                actions.append((after, MEASURE, 0))
        if step < num_steps:
            start[step] = free
            free = free + durations[step]
    return _schedule(num_workers, np.tile(np.arange(num_workers), num_steps), start.ravel(),
                     (start + durations).ravel(), actions)


def whenever_ready(num_workers: int, num_gradients: int, max_drift: int, timing: Any, *,
                   merge_time: float = 0.0, seed: int = 0) -> AveragingSchedule:
    """Averaging whenever every worker has an update: paper D's Algorithm 1.

    When each worker has computed a gradient since it released last, and has taken the last copy,
    the server asks all for their updates, merges them, and sends the copy, which is there
    ``merge_time`` later. A worker takes it before its next gradient, keeping what it has gained
    meanwhile. It waits only when it is ``max_drift`` gradients ahead of its copy. That the
    server does not ask before the last copy is taken is a choice made here; the paper's text does
    not say it.

    Args:
        num_workers: N.
        num_gradients: T, in order of arrival.
        max_drift: the bound, paper D's tau, 1 or more.
        timing: computing times, a `Timing` or a `Distribution`.
        merge_time: seconds from asking until all have the copy.
        seed: of the computing times.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> times = timing_lib.Timing(timing_lib.constant(1.0), slowdown=[1.0, 3.0])
        >>> schedule = whenever_ready(2, 8, max_drift=4, timing=times)
        >>> print(schedule.worker, schedule.drift)  # Asked after gradients 4 and 8.
        [0 0 0 1 0 0 0 1] [1 2 3 1 4 2 3 1]
    """
    for name, value, least in (("num_workers", num_workers, 1), ("num_gradients", num_gradients, 0),
                               ("max_drift", max_drift, 1)):
        _whole(name, value, least)
    _seconds("merge_time", merge_time)
    cluster = Cluster(timing, num_workers, seed)
    draws = _Draws(cluster)
    drift, pending = [0] * num_workers, [0] * num_workers
    holds, waiting = [True] * num_workers, set()
    worker, start, finish, actions, queue = [], [], [], [], []
    arrival = None  # When the copy is there.

    def begin(w, now):
        heapq.heappush(queue, (now + draws(w), w, now))

    def ask(now):
        nonlocal arrival
        if all(holds) and all(pending):
            actions.extend((len(worker), RELEASE, w) for w in range(num_workers))
            actions.append((len(worker), MERGE, 0))
            pending[:], holds[:] = [0] * num_workers, [False] * num_workers
            arrival = now + merge_time

    def proceed(w, now):
        """What worker w does between two gradients."""
        if not holds[w] and arrival <= now:
            actions.append((len(worker), TAKE, w))
            drift[w], holds[w] = pending[w], True
            if all(holds):
                actions.append((len(worker), MEASURE, 0))
            ask(now)
        if drift[w] < max_drift:
            begin(w, now)
        else:
            waiting.add(w)

    for w in range(num_workers):
        begin(w, 0.0)
    while len(worker) < num_gradients:
        thirsty = sorted(w for w in waiting if not holds[w])
        if thirsty and (not queue or arrival <= queue[0][0]):
            waiting.difference_update(thirsty)
            for w in thirsty:
                proceed(w, arrival)
            continue
        now, w, began = heapq.heappop(queue)
        worker.append(w), start.append(began), finish.append(now)
        drift[w] += 1
        pending[w] += 1
        ask(now)
        proceed(w, now)
    return _schedule(num_workers, worker, start, finish, actions)


def independent(num_workers: int, num_gradients: int, steps: Any, timing: Any, *,
                merge_time: float = 0.0, takes: bool = True, seed: int = 0) -> AveragingSchedule:
    """Every worker sends its update alone, after steps of its own: asynchronous DiLoCo.

    Args:
        num_workers: N.
        num_gradients: T, in order of arrival.
        steps: local gradients between two updates, a number or one for each worker.
        timing: computing times, a `Timing` or a `Distribution`.
        merge_time: seconds from sending until the worker, who waits, has the new copy.
        takes: whether a worker goes on from the server's copy (else it keeps its own parameters,
            as elastic averaging does).
        seed: of the computing times.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> schedule = independent(2, 6, steps=[2, 1], timing=timing_lib.constant(1.0))
        >>> print(schedule.worker, schedule.num_merges, schedule.drift)
        [0 1 0 1 0 1] 4 [1 1 2 1 1 1]
    """
    _whole("num_workers", num_workers, 1)
    _whole("num_gradients", num_gradients, 0)
    if np.ndim(steps) and len(steps) != num_workers:
        raise ValueError(f"steps must be a number or {num_workers} of them, got {len(steps)}")
    steps = np.broadcast_to(steps, num_workers).tolist()
    for value in steps:
        _whole("steps", value, 1)
    _seconds("merge_time", merge_time)
    draws = _Draws(Cluster(timing, num_workers, seed))
    done, merges = [0] * num_workers, 0
    worker, start, finish, actions = [], [], [], []
    # (time, gradients before merges, worker, when the gradient was begun or None for a merge)
    queue = [(draws(w), 0, w, 0.0) for w in range(num_workers)]
    heapq.heapify(queue)
    while len(worker) < num_gradients or queue and queue[0][3] is None and (
            queue[0][0] <= finish[-1]):
        now, _, w, began = heapq.heappop(queue)
        if began is None:
            actions += [(len(worker), RELEASE, w), (len(worker), MERGE, 0)]
            actions += [(len(worker), TAKE, w)] * takes
            merges += 1
            actions += [(len(worker), MEASURE, 0)] * (merges % num_workers == 0)
        else:
            worker.append(w), start.append(began), finish.append(now)
            done[w] += 1
            if done[w] % steps[w] == 0:
                heapq.heappush(queue, (now + merge_time, 1, w, None))
                continue
        heapq.heappush(queue, (now + draws(w), 0, w, now))
    return _schedule(num_workers, worker, start, finish, actions)


class _Draws:
    """The next computing time of each worker, drawn some at a time."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._left = [iter(())] * cluster.num_workers

    def __call__(self, worker):
        for duration in self._left[worker]:
            return duration
        self._left[worker] = iter(self._cluster.durations(worker, 256).tolist())
        return next(self._left[worker])


def _schedule(num_workers, worker, start, finish, actions):
    after, action, member = np.array(actions, np.int64).reshape(-1, 3).T
    return AveragingSchedule(num_workers, np.array(worker, np.int32), np.array(start, float),
                             np.array(finish, float), after, action, member)


def _whole(name, value, least):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")


def _seconds(name, value):
    if not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be seconds, 0 or more, got {value!r}")


def _refuse(name, array, bad, why):
    places = np.flatnonzero(bad)
    if places.size:
        raise ValueError(f"{name}[{places[0]}] is {array[places[0]]}: {why}")

"""Who computes when and when updates are averaged: the trace of training by local steps (paper D).

Example:
    >>> schedule = cyclic(num_workers=2, num_steps=6, period=2)
    >>> print(schedule)
    12 gradients of 2 workers, 3 merges; drift 2.83 on average, 4 at most; idle 0 % of the time
"""

import heapq
from typing import Any, Optional

import numpy as np

from asgd.cluster import timing as timing_lib
from asgd.cluster.averaging_schedule import (
    MEASURE,
    MERGE,
    RELEASE,
    TAKE,
    AveragingSchedule,
    check_whole,
)
from asgd.cluster.simulate import Cluster


def cyclic(num_workers: int, num_steps: int, period: int, *, delay: Optional[int] = None,
           timing: Any = None, merge_time: float = 0.0, takes: bool = True,
           measure_every: int = 1, seed: int = 0) -> AveragingSchedule:
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
        measure_every: merges between two measurements, which take as long as N * N reads of a
            worker's parameters; 0 for none.
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
        check_whole(name, value, least)
    if delay > period:
        raise ValueError(f"delay must be 0 to period={period}, got {delay}")
    _seconds("merge_time", merge_time)
    cluster = _cluster(timing_lib.constant(1.0) if timing is None else timing, num_workers, seed)
    durations = np.stack([cluster.durations(w, num_steps) for w in range(num_workers)], axis=1)
    start, free = np.zeros((num_steps, num_workers)), np.zeros(num_workers)
    actions = _Actions(measure_every)
    ready = None  # When the copy that is under way is there.
    for step in range(num_steps + 1):
        after = step * num_workers
        releases = step > 0 and step % period == 0
        if ready is not None and delay and step % period == delay % period:
            free = np.maximum(free, ready)
            ready = None
            actions.add_all(after, TAKE, free if takes else ())
            if not releases:
                actions.measure(after, free.max())
        if releases:
            actions.add_all(after, RELEASE, free)
            ready = free.max() + merge_time
            actions.add(after, MERGE, 0, ready)
            if not delay:
                free = np.full(num_workers, ready)
                actions.add_all(after, TAKE, free if takes else ())
            if delay in (0, period):
                actions.measure(after, free.max())
        if step < num_steps:
            start[step] = free
            free = free + durations[step]
    return _schedule("cyclic" if takes else "cyclic, kept", num_workers,
                     np.tile(np.arange(num_workers), num_steps), start.ravel(),
                     (start + durations).ravel(), actions)


def whenever_ready(num_workers: int, num_gradients: int, max_drift: int, timing: Any, *,
                   merge_time: float = 0.0, measure_every: int = 1,
                   seed: int = 0) -> AveragingSchedule:
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
        measure_every: merges between two measurements, or 0.
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
        check_whole(name, value, least)
    _seconds("merge_time", merge_time)
    draws = _Draws(_cluster(timing, num_workers, seed))
    drift, pending = [0] * num_workers, [0] * num_workers
    holds, waiting = [True] * num_workers, set()
    worker, start, finish, queue, actions = [], [], [], [], _Actions(measure_every)
    arrival = None  # When the copy is there.

    def begin(w, now):
        heapq.heappush(queue, (now + draws(w), w, now))

    def ask(now):
        nonlocal arrival
        if all(holds) and all(pending):
            actions.add_all(len(worker), RELEASE, [now] * num_workers)
            pending[:], holds[:] = [0] * num_workers, [False] * num_workers
            arrival = now + merge_time
            actions.add(len(worker), MERGE, 0, arrival)

    def proceed(w, now):
        """What worker w does between two gradients."""
        if not holds[w] and arrival <= now:
            actions.add(len(worker), TAKE, w, now)
            drift[w], holds[w] = pending[w], True
            if all(holds):
                actions.measure(len(worker), now)
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
    return _schedule("whenever_ready", num_workers, worker, start, finish, actions)


def independent(num_workers: int, num_gradients: int, steps: Any, timing: Any, *,
                merge_time: float = 0.0, takes: bool = True, measure_every: int = 1,
                seed: int = 0) -> AveragingSchedule:
    """Every worker sends its update alone, after steps of its own: asynchronous DiLoCo.

    Args:
        num_workers: N.
        num_gradients: T, in order of arrival.
        steps: local gradients between two updates, a number or one for each worker.
        timing: computing times, a `Timing` or a `Distribution`.
        merge_time: seconds from sending until the worker, who waits, has the new copy.
        takes: whether a worker goes on from the server's copy (else it keeps its own parameters,
            as elastic averaging does).
        measure_every: so many times N merges between two measurements, or 0.
        seed: of the computing times.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> schedule = independent(2, 6, steps=[2, 1], timing=timing_lib.constant(1.0))
        >>> print(schedule.worker, schedule.num_merges, schedule.drift)
        [0 1 0 1 0 1] 4 [1 1 2 1 1 1]
    """
    check_whole("num_workers", num_workers, 1)
    check_whole("num_gradients", num_gradients, 0)
    if np.ndim(steps) and len(steps) != num_workers:
        raise ValueError(f"steps must be a number or {num_workers} of them, got {len(steps)}")
    steps = np.broadcast_to(steps, num_workers).tolist()
    for value in steps:
        check_whole("steps", value, 1)
    _seconds("merge_time", merge_time)
    draws = _Draws(_cluster(timing, num_workers, seed))
    done, merges = [0] * num_workers, 0
    worker, start, finish, actions = [], [], [], _Actions(measure_every)
    # (time, gradients before merges, worker, when the gradient was begun or None for a merge)
    queue = [(draws(w), 0, w, 0.0) for w in range(num_workers)]
    heapq.heapify(queue)
    while len(worker) < num_gradients or queue and queue[0][3] is None and (
            queue[0][0] <= finish[-1]):
        now, _, w, began = heapq.heappop(queue)
        if began is None:
            for action in (RELEASE, MERGE) + (TAKE,) * takes:
                actions.add(len(worker), action, w, now)
            merges += 1
            if merges % num_workers == 0:
                actions.measure(len(worker), now)
        else:
            worker.append(w), start.append(began), finish.append(now)
            done[w] += 1
            if done[w] % steps[w] == 0:
                heapq.heappush(queue, (now + merge_time, 1, w, None))
                continue
        heapq.heappush(queue, (now + draws(w), 0, w, now))
    return _schedule("independent" if takes else "independent, kept", num_workers, worker, start,
                     finish, actions)


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


class _Actions:
    """The rows of a schedule's actions."""

    def __init__(self, measure_every):
        check_whole("measure_every", measure_every, 0)
        self._every, self._asked = measure_every, 0
        self.rows = []

    def add(self, after, action, worker, time):
        self.rows.append((after, action, worker, time))

    def add_all(self, after, action, times):
        self.rows += [(after, action, w, time) for w, time in enumerate(times)]

    def measure(self, after, time):
        self._asked += 1
        if self._every and self._asked % self._every == 0:
            self.add(after, MEASURE, 0, time)


def _cluster(timing, num_workers, seed):
    cluster = Cluster(timing, num_workers, seed)
    if cluster.timing.pull.mean or cluster.timing.push.mean:
        raise ValueError("timing: pull and push must be 0, as communication takes merge_time")
    return cluster


def _schedule(kind, num_workers, worker, start, finish, actions):
    after, action, member, time = zip(*actions.rows) if actions.rows else ((),) * 4
    return AveragingSchedule(
        num_workers, np.array(worker, np.int32), np.array(start, float), np.array(finish, float),
        np.array(after, np.int64), np.array(action, np.int64), np.array(member, np.int64),
        np.array(time, float), kind)


def _seconds(name, value):
    if not isinstance(value, (int, float, np.number)) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be seconds, 0 or more, got {value!r}")

"""Between waiting for all and taking everything: staleness, but less of it.

K-async is that of Dutta, Joshi, Ghosh, Dube and Nagpurkar, "Slow and stale gradients can win the
race" (2018, arXiv 1803.01113); SSP that of Ho et al., "More effective distributed ML via a stale
synchronous parallel parameter server" (NIPS 2013); the threshold that of Maranjyan, Tyurin and
Richtarik, "Ringmaster ASGD" (2025, arXiv 2501.16168), Algorithms 4 and 5.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from asgd.cluster.protocols.base import Protocol, check_integer
from asgd.cluster.protocols.event_queue import EventQueue


@dataclasses.dataclass(frozen=True)
class KAsync(Protocol):
    """See `k_async`."""

    k: int

    def __post_init__(self):
        check_integer(self, "k", least=1)

    def gradients_per_update(self, num_workers: int) -> int:
        if self.k > num_workers:
            raise ValueError(f"k of k_async must be in [1, num_workers={num_workers}]: {self.k}")
        return self.k

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        size = self.gradients_per_update(cluster.num_workers)
        queue = EventQueue(cluster)
        waiting: list[int] = []
        for worker in queue.arrivals(num_gradients):
            waiting.append(worker)
            if len(waiting) == size:
                queue.update()
                queue.begin(waiting)
                waiting.clear()
        return queue.columns()


@dataclasses.dataclass(frozen=True)
class Ssp(Protocol):
    """See `ssp`."""

    s: int

    def __post_init__(self):
        check_integer(self, "s", least=0)

    def gradients_per_update(self, num_workers: int) -> int:
        return 1

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        queue = EventQueue(cluster)
        finished = [0] * cluster.num_workers
        least, last = 0, cluster.num_workers  # So many workers have finished the fewest gradients.
        waiting: list[int] = []
        for worker in queue.arrivals(num_gradients):
            queue.update()
            finished[worker] += 1
            if finished[worker] > least + self.s:
                waiting.append(worker)
            else:
                queue.begin([worker])
            last -= finished[worker] == least + 1
            if not last:
                least += 1
                last = finished.count(least)
                queue.begin(waiting)  # They were all one gradient too far ahead.
                waiting.clear()
        return queue.columns()


@dataclasses.dataclass(frozen=True)
class StalenessThreshold(Protocol):
    """See `staleness_threshold`."""

    s: int
    on_late: str = "drop"

    def __post_init__(self):
        check_integer(self, "s", least=0)
        if self.on_late not in ("drop", "cancel"):
            raise ValueError(f"on_late must be 'drop' or 'cancel', not {self.on_late!r}")

    def gradients_per_update(self, num_workers: int) -> int:
        return 1

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        return (self._drop if self.on_late == "drop" else self._cancel)(cluster, num_gradients)

    def _drop(self, cluster, num_gradients):
        worker, _, start_time, finish_time = cluster.arrivals(num_gradients)
        version, reads = 0, [0] * cluster.num_workers
        read_version = np.empty(num_gradients, np.int32)
        applied = np.empty(num_gradients, bool)
        for event, w in enumerate(worker.tolist()):
            read_version[event] = reads[w]
            applied[event] = fresh = version - reads[w] <= self.s
            version += fresh
            reads[w] = version
        return {
            "worker": worker,
            "read_version": read_version,
            "applied": applied,
            "start_time": start_time,
            "finish_time": finish_time,
        }

    def _cancel(self, cluster, num_gradients):
        queue = EventQueue(cluster)
        # Who began on each of the last s + 1 versions; some of them have finished since.
        began = collections.deque([list(range(cluster.num_workers))])
        for worker in queue.arrivals(num_gradients):
            queue.update()
            queue.begin([worker])
            began.append([worker])
            if len(began) > self.s + 1:
                late = queue.version - self.s - 1
                cancelled = [w for w in began.popleft() if queue.read_version[w] == late]
                queue.begin(cancelled)
                began[-1] += cancelled
        return queue.columns()

    def describe(self) -> dict[str, Any]:
        cancels = {"cancels": True, "waits": False} if self.on_late == "cancel" else {}
        return {**super().describe(), **cancels}


def k_async(k: int) -> KAsync:
    """K-async: an update when k different workers have pushed since the last (Dutta et al. 2018).

    A worker that has pushed waits for the update, and begins on the version that it makes. The
    others are not cancelled, so their gradients are stale: (P - k) / k on average for any times,
    with P workers. With exponential times of rate mu an update takes (H_P - H_{P-k}) / mu.

    Args:
        k: Gradients of an update, 1 <= k <= num_workers; 1 is `asynchronous`, num_workers
            `hardsync`.

    Raises:
        ValueError: If k < 1; in a simulation, if k > num_workers.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[2.0, 3.0, 5.0])
        >>> trace = cluster.simulate(k_async(2), times, 3, 4, seed=0)
        >>> trace.worker.tolist(), trace.start_time.tolist(), trace.staleness.tolist()
        ([0, 1, 0, 2], [0.0, 0.0, 3.0, 0.0], [0, 0, 0, 1])
    """
    return KAsync(k=k)


def ssp(s: int) -> Ssp:
    """Stale synchronous parallel: no worker is more than s gradients ahead (Ho et al. 2013).

    Every gradient makes an update when it arrives. A worker that has finished c gradients begins
    its next one only if c - min over all workers of theirs <= s; else it waits until that holds.
    It then reads the server's version, which has at least the first c - s gradients of every
    worker in it, and at most all that have arrived.

    Args:
        s: Bound, >= 0. With 0 nobody begins a round before all have finished the last; a large
            one is `asynchronous`.

    Raises:
        ValueError: If s < 0.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[1.0, 4.0])
        >>> trace = cluster.simulate(ssp(1), times, 2, 5, seed=0)
        >>> trace.worker.tolist(), trace.start_time.tolist()
        ([0, 0, 1, 0, 1], [0.0, 1.0, 0.0, 4.0, 4.0])
    """
    return Ssp(s=s)


def staleness_threshold(s: int, on_late: str = "drop") -> StalenessThreshold:
    """Asynchronous, but no gradient with a staleness above s is applied (Ringmaster ASGD).

    * "drop": a gradient that arrives with a staleness > s is dropped, and the worker reads the
      server's version and goes on. Algorithm 4 of Maranjyan et al. 2025 with R = s + 1.
    * "cancel": when an update brings the staleness of what a worker is computing above s, the
      worker is cancelled and begins anew on that update's version. Algorithm 5 with R = s + 1:
      the largest staleness that arrives is s. What is cancelled is no event.

    Args:
        s: Largest staleness in updates, >= 0; a large one is `asynchronous`.
        on_late: "drop" or "cancel".

    Raises:
        ValueError: If s < 0 or on_late is unknown.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[2.0, 3.0])
        >>> trace = cluster.simulate(staleness_threshold(1), times, 2, 5, seed=0)
        >>> trace.worker.tolist(), trace.staleness.tolist(), trace.applied.tolist()
        ([0, 1, 0, 0, 1], [0, 1, 1, 0, 2], [True, True, True, True, False])
        >>> trace = cluster.simulate(staleness_threshold(1, "cancel"), times, 2, 6, seed=0)
        >>> trace.worker.tolist(), trace.staleness.tolist(), trace.start_time.tolist()
        ([0, 1, 0, 0, 0, 1], [0, 1, 1, 0, 0, 1], [0.0, 0.0, 2.0, 4.0, 6.0, 6.0])
    """
    return StalenessThreshold(s=s, on_late=on_late)

"""Walks through a cluster event by event, for protocols that make workers wait or cancel them."""

import heapq
from array import array
from collections.abc import Iterable, Iterator

import numpy as np


def _durations(cluster, worker: int) -> Iterator[float]:
    """The worker's durations one by one, drawn in chunks, which changes none of them."""
    size = 8
    while True:
        yield from cluster.durations(worker, size).tolist()
        size = min(2 * size, 4096)


class EventQueue:
    """The gradients under way, in the order (arrival, worker, sequence), and the rows so far.

    All workers begin on version 0 at time 0. A protocol loops over `arrivals` and says for each
    what the server does and who begins.

    Args:
        cluster: An `asgd.cluster.simulate.Cluster`.

    Attributes:
        version: The server's version now.
        read_version: For each worker the version that it last began on.

    Example:
        >>> from asgd.cluster import timing
        >>> from asgd.cluster.simulate import Cluster
        >>> queue = EventQueue(Cluster(timing.constant(1.0), num_workers=2, seed=0))
        >>> for worker in queue.arrivals(3):  # asynchronous()
        ...     queue.update()
        ...     queue.begin([worker])
        >>> queue.columns()["read_version"].tolist()
        [0, 0, 1]
    """

    def __init__(self, cluster):
        workers = cluster.num_workers
        self.version = 0
        self.read_version = [0] * workers
        self._now = 0.0
        self._draw = [_durations(cluster, worker).__next__ for worker in range(workers)]
        self._start = [0.0] * workers
        self._sequence = [0] * workers
        self._queue: list[tuple[float, int, int]] = []
        self._rows = array("i"), array("i"), array("d"), array("d")
        self._applied, self._updates = bytearray(), bytearray()
        self.begin(range(workers))

    def begin(self, workers: Iterable[int]) -> None:
        """The workers read the server's version and begin; one that is computing is cancelled."""
        now, version, queue, sequence = self._now, self.version, self._queue, self._sequence
        for worker in workers:
            sequence[worker] += 1
            self.read_version[worker] = version
            self._start[worker] = now
            heapq.heappush(queue, (now + self._draw[worker](), worker, sequence[worker]))
        if len(queue) > 2 * len(sequence):  # More of them are cancelled than not.
            queue[:] = [entry for entry in queue if entry[2] == sequence[entry[1]]]
            heapq.heapify(queue)

    def begin_all(self) -> None:
        """All workers begin, and whatever they were computing is cancelled."""
        self._queue.clear()
        self.begin(range(len(self._sequence)))

    def arrivals(self, num_gradients: int) -> Iterator[int]:
        """Yields the workers of the next gradients; each waits from then on, until it begins."""
        queue, sequence = self._queue, self._sequence
        workers, read_versions, starts, finishes = (rows.append for rows in self._rows)
        for _ in range(num_gradients):
            self._now, worker, number = heapq.heappop(queue)
            while number != sequence[worker]:  # It was cancelled.
                self._now, worker, number = heapq.heappop(queue)
            workers(worker)
            read_versions(self.read_version[worker])
            starts(self._start[worker])
            finishes(self._now)
            self._applied.append(True)
            self._updates.append(False)
            yield worker

    def update(self) -> None:
        """The server makes an update right after the gradient that arrived last."""
        self.version += 1
        self._updates[-1] = True

    def drop(self) -> None:
        """The server drops the gradient that arrived last."""
        self._applied[-1] = False

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the trace's columns; versions follow from the updates."""
        names = ("worker", "read_version", "start_time", "finish_time")
        columns = {name: np.array(rows) for name, rows in zip(names, self._rows, strict=True)}
        flags = {"applied": self._applied, "updates": self._updates}
        return columns | {name: np.frombuffer(flag, bool) for name, flag in flags.items()}

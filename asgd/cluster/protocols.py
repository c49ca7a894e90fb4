"""When the server updates and when workers wait.

Hardsync and n-softsync are those of Zhang, Gupta, Lian and Liu, "Staleness-aware Async-SGD for
distributed deep learning" (IJCAI 2016, arXiv 1511.05950), section 2.

A protocol is a frozen dataclass derived from `Protocol`. It gets the cluster, from which it takes
the durations of each worker's cycles (`cluster.durations(worker, size)`) or, if workers never
wait, all arrivals at once (`cluster.arrivals(num_gradients)`), and returns the trace's columns.
A protocol that cancels or delays gradients walks through the durations event by event.
"""

import abc
import dataclasses
import numbers
from typing import Any

import numpy as np


class Protocol(abc.ABC):
    """Turns the durations of the workers' cycles into the columns of a trace."""

    @abc.abstractmethod
    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        """Returns the `Trace` fields, each `[num_gradients]`, in (time, worker, sequence) order.

        Args:
            cluster: An `asgd.cluster.simulate.Cluster`.
            num_gradients: Number of gradient events. The first k events must not depend on it.

        Raises:
            ValueError: If the protocol does not fit the cluster.
        """

    @abc.abstractmethod
    def gradients_per_update(self, num_workers: int) -> int:
        """Returns how many gradients make one update of the server."""

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-able dict for a trace's metadata."""
        return {"protocol": type(self).__name__.lower(), **dataclasses.asdict(self)}


def _without_waiting(cluster, num_gradients: int, size: int, pull: str) -> dict[str, np.ndarray]:
    """Columns of the protocols whose workers never wait and whose server takes every `size`."""
    worker, previous, start_time, finish_time = cluster.arrivals(num_gradients)
    event = np.arange(num_gradients, dtype=np.int32)
    version = event // np.int32(size)
    updates = (event + 1) % size == 0
    pulled = version + updates if pull == "after" else version
    return {
        "worker": worker,
        "read_version": np.where(previous < 0, np.int32(0), pulled[previous]),
        "version": version,
        "updates": updates,
        "start_time": start_time,
        "finish_time": finish_time,
    }


def _check_pull(pull: str) -> None:
    if pull not in ("after", "before"):
        raise ValueError(f"pull must be 'after' or 'before', not {pull!r}")


@dataclasses.dataclass(frozen=True)
class Hardsync(Protocol):
    """See `hardsync`."""

    def gradients_per_update(self, num_workers: int) -> int:
        return num_workers

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        workers = cluster.num_workers
        rounds = -(-num_gradients // workers)
        durations = np.empty((rounds, workers))
        for worker in range(workers):
            durations[:, worker] = cluster.durations(worker, rounds)
        # Rounding is monotone: the largest start + duration is start + the largest duration.
        ends = np.cumsum(durations.max(axis=1))
        starts = np.concatenate([np.zeros(1), ends[:-1]])
        finish_time = starts[:, None] + durations
        order = np.argsort(finish_time, axis=1, kind="stable").astype(np.int32)
        finish_time = np.take_along_axis(finish_time, order, axis=1)
        version = np.repeat(np.arange(rounds, dtype=np.int32), workers)
        columns = {
            "worker": order.ravel(),
            "read_version": version,
            "version": version,
            "updates": np.tile(np.arange(workers) == workers - 1, rounds),
            "start_time": np.repeat(starts, workers),
            "finish_time": finish_time.ravel(),
        }
        return {name: column[:num_gradients] for name, column in columns.items()}


@dataclasses.dataclass(frozen=True)
class Softsync(Protocol):
    """See `softsync`."""

    n: int
    pull: str = "after"

    def __post_init__(self):
        _check_pull(self.pull)
        if isinstance(self.n, bool) or not isinstance(self.n, numbers.Integral) or self.n < 1:
            raise ValueError(f"n must be an integer >= 1, not {self.n!r}")
        object.__setattr__(self, "n", int(self.n))

    def gradients_per_update(self, num_workers: int) -> int:
        if self.n > num_workers:
            raise ValueError(f"n of softsync must be in [1, num_workers={num_workers}]: {self.n}")
        return num_workers // self.n

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        size = self.gradients_per_update(cluster.num_workers)
        return _without_waiting(cluster, num_gradients, size, self.pull)


@dataclasses.dataclass(frozen=True)
class Asynchronous(Protocol):
    """See `asynchronous`."""

    pull: str = "after"

    def __post_init__(self):
        _check_pull(self.pull)

    def gradients_per_update(self, num_workers: int) -> int:
        return 1

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        return _without_waiting(cluster, num_gradients, 1, self.pull)


def hardsync() -> Hardsync:
    """Synchronous SGD: the server waits for one gradient of every worker (paper A, section 2).

    With lambda workers the update is theta_{i+1} = theta_i - alpha / lambda sum_l g_l(theta_i).
    It is made on the last arrival of a round; all workers then start the next round together.
    Staleness is always 0.

    Example:
        >>> from asgd import cluster
        >>> trace = cluster.simulate(hardsync(), cluster.timing.constant(1.0), 2, 4, seed=0)
        >>> trace.version.tolist(), trace.updates.tolist()
        ([0, 0, 1, 1], [False, True, False, True])
    """
    return Hardsync()


def softsync(n: int, pull: str = "after") -> Softsync:
    """n-softsync: an update after every c gradients of any workers (paper A, section 2, Eq. 2).

    With lambda workers c = floor(lambda / n). Workers never wait, and one worker may contribute
    twice to an update. Event e arrives at version floor(e / c) and updates iff c divides e + 1.
    The mean staleness is (lambda - 1) / c with pull="after" and lambda / c with pull="before".

    Args:
        n: Splitting parameter, 1 <= n <= num_workers; n = num_workers is `asynchronous`.
        pull: Whether the worker whose gradient triggers an update pulls "after" or "before" it.

    Raises:
        ValueError: If n < 1 or pull is unknown; in a simulation, if n > num_workers.

    Example:
        >>> from asgd import cluster
        >>> trace = cluster.simulate(softsync(n=1), cluster.timing.constant(1.0), 2, 5, seed=0)
        >>> trace.version.tolist(), trace.read_version.tolist()
        ([0, 0, 1, 1, 2], [0, 0, 0, 1, 1])
    """
    return Softsync(n=n, pull=pull)


def asynchronous(pull: str = "after") -> Asynchronous:
    """An update after every gradient: `softsync` with c = 1, Downpour's protocol.

    Args:
        pull: Whether a worker pulls "after" or "before" the update that its gradient makes.

    Example:
        >>> from asgd import cluster
        >>> trace = cluster.simulate(asynchronous(), cluster.timing.constant(1.0), 3, 6, seed=0)
        >>> trace.staleness.tolist()
        [0, 1, 2, 2, 2, 2]
    """
    return Asynchronous(pull=pull)

"""Workers never wait, and an update is made after a fixed number of gradients.

n-softsync is that of Zhang, Gupta, Lian and Liu, "Staleness-aware Async-SGD for distributed deep
learning" (IJCAI 2016, arXiv 1511.05950), section 2; K-batch-async that of Dutta, Joshi, Ghosh,
Dube and Nagpurkar, "Slow and stale gradients can win the race" (2018, arXiv 1803.01113).
"""

import dataclasses

import numpy as np

from asgd.cluster.protocols.base import Protocol, check_integer


def _without_waiting(cluster, num_gradients: int, size: int, pull: str) -> dict[str, np.ndarray]:
    """Columns of the protocols whose workers never wait and whose server takes every `size`."""
    worker, previous, start_time, finish_time = cluster.arrivals(num_gradients)
    size = np.int32(min(size, 2**31 - 1))
    event = np.arange(num_gradients, dtype=np.int32)
    version = event // size
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
class Softsync(Protocol):
    """See `softsync`."""

    n: int
    pull: str = "after"

    def __post_init__(self):
        _check_pull(self.pull)
        check_integer(self, "n", least=1)

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


@dataclasses.dataclass(frozen=True)
class KBatchAsync(Protocol):
    """See `k_batch_async`."""

    k: int

    def __post_init__(self):
        check_integer(self, "k", least=1)

    def gradients_per_update(self, num_workers: int) -> int:
        return self.k

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        return _without_waiting(cluster, num_gradients, self.k, "after")


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


def k_batch_async(k: int) -> KBatchAsync:
    """K-batch-async: an update after every k gradients of any workers (Dutta et al. 2018).

    The rule of `softsync` with c = k and pull="after", but any k >= 1 will do. With P workers of
    mean time E[T] an update takes k E[T] / P, and the mean staleness is (P - 1) / k.

    Args:
        k: Gradients of an update, >= 1; a worker may contribute several.

    Raises:
        ValueError: If k < 1.

    Example:
        >>> from asgd import cluster
        >>> trace = cluster.simulate(k_batch_async(2), cluster.timing.constant(1.0), 3, 6, seed=0)
        >>> trace.version.tolist(), trace.staleness.tolist()
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1])
    """
    return KBatchAsync(k=k)

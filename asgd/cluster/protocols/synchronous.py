"""Rounds: every applied gradient was computed on the server's present version, staleness 0.

Hardsync is that of Zhang, Gupta, Lian and Liu, "Staleness-aware Async-SGD for distributed deep
learning" (IJCAI 2016, arXiv 1511.05950), section 2. K-sync and K-batch-sync are those of Dutta,
Joshi, Ghosh, Dube and Nagpurkar, "Slow and stale gradients can win the race" (2018, arXiv
1803.01113); backup workers those of Chen, Pan, Monga, Bengio and Jozefowicz, "Revisiting
distributed synchronous SGD" (2016, arXiv 1604.00981).
"""

import dataclasses
from typing import Any

import numpy as np

from asgd.cluster.protocols.base import Protocol, check_integer
from asgd.cluster.protocols.event_queue import EventQueue

_BLOCK = 2**22  # Durations that are drawn and sorted at a time.


def _rounds(cluster, num_gradients: int, size: int) -> dict[str, np.ndarray]:
    """Columns of rounds that end with the `size`-th worker, after which all begin anew."""
    workers = cluster.num_workers
    rounds = -(-num_gradients // size)
    step = max(1, _BLOCK // workers)
    now = 0.0
    worker, starts, finish_time = [], [], []
    for first in range(0, rounds, step):
        durations = np.empty((min(step, rounds - first), workers))
        for w in range(workers):
            durations[:, w] = cluster.durations(w, len(durations))
        # Rounding is monotone: the size-th start + duration is start + the size-th duration.
        ends = np.partition(durations, size - 1, axis=1)[:, size - 1]
        ends[0] += now  # One running sum over all blocks: where they are cut changes no bit.
        ends = np.cumsum(ends)
        begin = np.concatenate([[now], ends[:-1]])
        now = ends[-1]
        finish = begin[:, None] + durations
        order = np.argsort(finish, axis=1, kind="stable")[:, :size].astype(np.int32)
        worker.append(order.ravel())
        starts.append(begin)
        finish_time.append(np.take_along_axis(finish, order, axis=1).ravel())
    columns = {
        "worker": np.concatenate(worker),
        "read_version": np.repeat(np.arange(rounds, dtype=np.int32), size),
        "updates": np.tile(np.arange(size) == size - 1, rounds),
        "start_time": np.repeat(np.concatenate(starts), size),
        "finish_time": np.concatenate(finish_time),
    }
    return {name: column[:num_gradients] for name, column in columns.items()}


@dataclasses.dataclass(frozen=True)
class Hardsync(Protocol):
    """See `hardsync`."""

    def gradients_per_update(self, num_workers: int) -> int:
        return num_workers

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        return _rounds(cluster, num_gradients, cluster.num_workers)


@dataclasses.dataclass(frozen=True)
class KSync(Protocol):
    """See `k_sync`."""

    k: int

    def __post_init__(self):
        check_integer(self, "k", least=1)

    def gradients_per_update(self, num_workers: int) -> int:
        if self.k > num_workers:
            raise ValueError(f"k of k_sync must be in [1, num_workers={num_workers}]: {self.k}")
        return self.k

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        return _rounds(cluster, num_gradients, self.gradients_per_update(cluster.num_workers))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "cancels": True, "waits": True}


@dataclasses.dataclass(frozen=True)
class KBatchSync(Protocol):
    """See `k_batch_sync`."""

    k: int

    def __post_init__(self):
        check_integer(self, "k", least=1)

    def gradients_per_update(self, num_workers: int) -> int:
        return self.k

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        queue = EventQueue(cluster)
        collected = 0
        for worker in queue.arrivals(num_gradients):
            collected += 1
            if collected < self.k:
                queue.begin([worker])
            else:
                queue.update()
                queue.begin_all()
                collected = 0
        return queue.columns()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "cancels": True, "waits": False}


@dataclasses.dataclass(frozen=True)
class BackupWorkers(Protocol):
    """See `backup_workers`."""

    spare: int

    def __post_init__(self):
        check_integer(self, "spare", least=0)

    def gradients_per_update(self, num_workers: int) -> int:
        if self.spare >= num_workers:
            raise ValueError(
                f"spare of backup_workers must be in [0, num_workers - 1={num_workers - 1}]: "
                f"{self.spare}"
            )
        return num_workers - self.spare

    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        size = self.gradients_per_update(cluster.num_workers)
        queue = EventQueue(cluster)
        waiting: list[int] = []
        for worker in queue.arrivals(num_gradients):
            if queue.read_version[worker] < queue.version:
                queue.drop()
                queue.begin([worker])
                continue
            waiting.append(worker)
            if len(waiting) == size:
                queue.update()
                queue.begin(waiting)
                waiting.clear()
        return queue.columns()


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


def k_sync(k: int) -> KSync:
    """K-sync: a round takes the first k workers and cancels the others (Dutta et al. 2018).

    The update is made on the k-th arrival of a round; all workers then start the next round
    together. What the others were computing is lost: their gradients are no events. Staleness is
    always 0. A round lasts as long as the k-th of P computing times, with exponential times of
    rate mu (H_P - H_{P-k}) / mu on average.

    Args:
        k: Gradients of an update, 1 <= k <= num_workers; k = num_workers is `hardsync`.

    Raises:
        ValueError: If k < 1; in a simulation, if k > num_workers.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[2.0, 3.0, 5.0])
        >>> trace = cluster.simulate(k_sync(2), times, 3, 4, seed=0)
        >>> trace.worker.tolist(), trace.finish_time.tolist()
        ([0, 1, 0, 1], [2.0, 3.0, 5.0, 6.0])
    """
    return KSync(k=k)


def k_batch_sync(k: int) -> KBatchSync:
    """K-batch-sync: a round takes the first k mini-batches of any workers (Dutta et al. 2018).

    Nobody waits: a worker that has finished begins another mini-batch on the same parameters. The
    update is made on the k-th arrival of a round; then all workers are cancelled and start the
    next round together. Staleness is always 0. With P workers and exponential times of rate mu a
    round lasts k / (P mu) on average.

    Args:
        k: Gradients of an update, >= 1; a worker may contribute several.

    Raises:
        ValueError: If k < 1.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[2.0, 3.0, 5.0])
        >>> trace = cluster.simulate(k_batch_sync(3), times, 3, 6, seed=0)
        >>> trace.worker.tolist(), trace.finish_time.tolist()
        ([0, 1, 0, 0, 1, 0], [2.0, 3.0, 4.0, 6.0, 7.0, 8.0])
    """
    return KBatchSync(k=k)


def backup_workers(spare: int) -> BackupWorkers:
    """Synchronous SGD with backup workers, whose late gradients are dropped (Chen et al. 2016).

    With P workers the update is made on the (P - spare)-th gradient of the present version. A
    worker that contributed to it waits for it. Late workers go on computing; when their gradient
    arrives it is dropped, and they begin at once on the version of the round that is under way,
    to which they can still contribute. The applied gradients have staleness 0.

    Args:
        spare: Gradients that a round does without, 0 <= spare < num_workers; 0 is `hardsync`.

    Raises:
        ValueError: If spare < 0; in a simulation, if spare >= num_workers.

    Example:
        >>> from asgd import cluster
        >>> times = cluster.Timing(cluster.timing.constant(1.0), slowdown=[2.0, 3.0, 4.0])
        >>> trace = cluster.simulate(backup_workers(1), times, 3, 5, seed=0)
        >>> trace.worker.tolist(), trace.applied.tolist()
        ([0, 1, 2, 0, 1], [True, True, False, True, True])
    """
    return BackupWorkers(spare=spare)

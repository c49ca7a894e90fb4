"""timing x protocol -> `Trace`: simulates a cluster in virtual time."""

import math
from typing import Any

import numpy as np

from asgd.cluster import timing as timing_lib
from asgd.cluster.checks import integer
from asgd.cluster.protocols import Protocol
from asgd.cluster.trace import Trace


def _generator(seed: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


class Cluster:
    """The workers of a virtual cluster with one random stream each.

    Worker w draws its computing times from child w of `numpy.random.SeedSequence(seed)`, and
    pull and push times, where they are not constant, from that child's two children. So neither
    further workers nor the number of times drawn change what a worker draws.

    Args:
        timing: A `Timing`, or a `Distribution` of computing times.
        num_workers: Number of workers, >= 1.
        seed: Integer >= 0.

    Raises:
        TypeError: If `timing` is neither.
        ValueError: If a number is out of range or `slowdown` does not have `num_workers` factors.

    Example:
        >>> Cluster(timing_lib.constant(2.0), num_workers=3, seed=0).durations(1, 2).tolist()
        [2.0, 2.0]
    """

    def __init__(self, timing, num_workers: int, seed: int):
        self.timing = timing_lib.as_timing(timing)
        self.num_workers = integer("num_workers", num_workers, least=1)
        self._distributions = self.timing.distributions(self.num_workers)
        self._slowdowns = self.timing.slowdowns(self.num_workers)
        seeds = np.random.SeedSequence(integer("seed", seed, least=0)).spawn(self.num_workers)
        self._compute = [_generator(seed) for seed in seeds]
        self._pull = self._push = [None] * self.num_workers
        transits = (self.timing.pull, self.timing.push)
        if any(transit.name != "constant" for transit in transits):
            # Always both children, so that a constant pull does not change the push times.
            children = [seed.spawn(2) for seed in seeds]
            if transits[0].name != "constant":
                self._pull = [_generator(child) for child, _ in children]
            if transits[1].name != "constant":
                self._push = [_generator(child) for _, child in children]

    def durations(self, worker: int, size: int) -> np.ndarray:
        """Draws the worker's next `size` cycles: pull + compute + push, float64 `[size]`."""
        timing = self.timing
        total = self._distributions[worker].sample(self._compute[worker], size)
        if timing.slowdown is not None:
            total *= self._slowdowns[worker]
        if timing.pull.mean > 0:
            total = timing.pull.sample(self._pull[worker], size) + total
        if timing.push.mean > 0:
            total = total + timing.push.sample(self._push[worker], size)
        return total

    def arrivals(self, num_gradients: int) -> tuple[np.ndarray, ...]:
        """Merges the gradients of workers that never wait, ordered by (time, worker, sequence).

        Returns:
            worker: int32 `[num_gradients]`.
            previous: int64 `[num_gradients]`, the same worker's previous event, or -1.
            start_time: float64 `[num_gradients]`, when that one arrived, or 0.
            finish_time: float64 `[num_gradients]`.
        """
        lengths, finish = self._finish_times(num_gradients)
        worker = np.repeat(np.arange(self.num_workers, dtype=np.int32), lengths)
        order = np.argsort(finish, kind="stable")  # Worker-major, so ties keep (worker, sequence).
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first = np.cumsum(lengths)[lengths > 0] - lengths[lengths > 0]
        previous = np.concatenate([[-1], rank[:-1]])
        previous[first] = -1
        start = np.concatenate([[0.0], finish[:-1]])
        start[first] = 0.0
        order = order[:num_gradients]
        return worker[order], previous[order], start[order], finish[order]

    def _finish_times(self, num_gradients: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns all finish times up to the `num_gradients`-th, worker by worker, and counts."""
        means = self.timing.cycle_means(self.num_workers)
        with np.errstate(all="ignore"):
            expected = num_gradients / np.sum(1 / means) / means
        if not np.isfinite(expected).all():
            raise ValueError("timing: virtual times must stay finite, but they overflow")
        # At least expected + 1 each: together never fewer than num_gradients.
        sizes = (expected + 2 * np.sqrt(expected) + 2).astype(np.int64)
        drawn: list[list[np.ndarray]] = [[] for _ in range(self.num_workers)]
        lengths = np.zeros(self.num_workers, np.int64)
        last = np.zeros(self.num_workers)
        pending = np.arange(self.num_workers)
        while len(pending):
            for worker, size in zip(pending.tolist(), sizes.tolist(), strict=True):
                chunk = self.durations(worker, size)
                # One running sum over all chunks: where they are cut never changes the bits.
                chunk[0] += last[worker]
                drawn[worker].append(np.cumsum(chunk, out=chunk))
                last[worker] = chunk[-1]
                lengths[worker] += size
            finish = np.concatenate([chunk for chunks in drawn for chunk in chunks])
            cut = np.partition(finish, num_gradients - 1)[num_gradients - 1]
            if not math.isfinite(cut):
                raise ValueError("timing: virtual times must stay finite, but they overflow")
            # A further cycle may take no time and so tie with the cut: hence <=.
            pending = np.flatnonzero(last <= cut)
            missing = (cut - last[pending]) / means[pending]
            sizes = np.maximum(missing.astype(np.int64), lengths[pending] // 8) + 8
        kept = finish <= cut
        ends = np.cumsum(lengths)
        count = np.concatenate([[0], np.cumsum(kept)])
        return count[ends] - count[ends - lengths], finish[kept]


def simulate(protocol: Protocol, timing, num_workers: int, num_gradients: int, seed: int) -> Trace:
    """Simulates a cluster and returns its gradient events.

    All workers read version 0 at time 0. A gradient arrives after pull, computing and push; the
    server takes arrivals in the order (time, worker, sequence). Equal arguments give equal bits,
    the first k events do not depend on `num_gradients`, and a further worker does not change
    the times that the others draw.

    Args:
        protocol: One of `asgd.cluster.protocols`.
        timing: A `Timing`, or a `Distribution` of computing times.
        num_workers: Number of workers, >= 1.
        num_gradients: Number of gradient events, in [1, 2**31); may end in the middle of a round.
        seed: Integer >= 0.

    Returns:
        A `Trace` of `num_gradients` events; its metadata says what was simulated.

    Raises:
        TypeError: If `protocol` or `timing` is of another type.
        ValueError: If a number is out of range, or protocol or timing do not fit `num_workers`.

    Example:
        >>> from asgd.cluster import protocols
        >>> trace = simulate(
        ...     protocols.asynchronous(), timing_lib.constant(1.0),
        ...     num_workers=3, num_gradients=5, seed=0,
        ... )
        >>> trace.worker.tolist(), trace.finish_time.tolist()
        ([0, 1, 2, 0, 1], [1.0, 1.0, 1.0, 2.0, 2.0])
    """
    if not isinstance(protocol, Protocol):
        raise TypeError(f"protocol must be one of asgd.cluster.protocols, not {protocol!r}")
    num_gradients = integer("num_gradients", num_gradients, least=1)
    if num_gradients >= 2**31:
        raise ValueError(f"num_gradients must be below 2**31, not {num_gradients}")
    cluster = Cluster(timing, num_workers, seed)
    protocol.gradients_per_update(cluster.num_workers)  # Refuses what does not fit, before work.
    metadata = {
        "protocol": protocol.describe(),
        "timing": cluster.timing.describe(),
        "seed": int(seed),
        "num_gradients": num_gradients,
    }
    columns = protocol.columns(cluster, num_gradients)
    return Trace(**columns, num_workers=cluster.num_workers, metadata=metadata)

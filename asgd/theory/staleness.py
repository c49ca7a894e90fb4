r"""The law of the staleness, for any distribution of times.

Workers that never wait are independent of each other. While worker w computes for a time T, the
others' gradients arrive at the rate :math:`\nu = \sum_{v \ne w} 1 / E[T_v]` and, aggregated over
many workers, nearly like a Poisson process (Palm and Khinchine), so their number is
:math:`N \sim \mathrm{Poisson}(\nu T)`, mixed over the law of T and over the workers, each with its
part :math:`p_w \propto 1 / E[T_w]` of the gradients. With exponential times this is exact,

.. math::
  P(N = n) = \sum_w p_w^2 (1 - p_w)^n,

and its mean is :math:`M - 1` for any times, as it must be; but for windows as long as E[T] it is
too wide where times vary less than exponential ones (equal constant times have N = M - 1), and too
narrow where they vary more. With c gradients per update the staleness is the number of updates
among those N arrivals. The approximation is named in the abstract of Yu, Chen and Poor (arXiv
2406.11159); the formulas are derived here.
"""

import math
from typing import Any

import numpy as np
from scipy import stats

from asgd.cluster import protocols, simulate
from asgd.cluster.checks import integer
from asgd.cluster.timing import Timing, as_timing
from asgd.theory import times

_TAIL = 1e-15  # What lies beyond is put on the largest staleness of a law.
_MOST = 10**8  # Terms of a law, which takes a second.


def mean_staleness(protocol: Any, num_workers: int) -> float | None:
    """Returns the exact mean staleness in updates where one holds for any times, else None.

    * softsync, asynchronous, K-batch-async, c gradients per update: (M - 1) / c if the worker that
      triggers an update pulls after it, M / c if before (Little's law, for unequal workers too).
    * K-async: an update is spanned by the computations of the M - K workers that it does not
      wait for, so M / K - 1.
    * hardsync, K-sync, K-batch-sync, backup workers: 0.

    Example:
      >>> from asgd.cluster import protocols
      >>> mean_staleness(protocols.softsync(n=15), 30), mean_staleness(protocols.hardsync(), 30)
      (14.5, 0.0)
    """
    integer("num_workers", num_workers, least=1)
    size = protocol.gradients_per_update(num_workers)
    if isinstance(protocol, (protocols.Hardsync, protocols.KSync, protocols.KBatchSync,
                             protocols.BackupWorkers)):
        return 0.0
    if isinstance(protocol, protocols.KAsync):
        return num_workers / size - 1
    if never_waiting(protocol):
        before = getattr(protocol, "pull", "after") == "before"
        return (num_workers - (not before)) / size
    return None


def staleness_law(protocol: Any, timing: Any, num_workers: int, *, method: str = "auto",
                  num_gradients: int = 200_000, seed: int = 0) -> np.ndarray:
    """Returns P(tau = k) of the applied gradients in the long run, float64 [largest + 1].

    Args:
      protocol: one of `asgd.cluster.protocols`.
      timing: a `Timing`, or a distribution of computing times.
      num_workers: M.

    Other args:
      method: "exact", for synchronous protocols and for workers that never wait with exponential
        times, or equal constant ones; "poisson", for workers that never wait; "simulation"; or
        "auto", the first of exact and simulation that can be had.
      num_gradients: of the simulation, whose first tenth is left out.
      seed: of the simulation.

    Raises:
      ValueError: if the method is unknown or does not fit.

    Example:
      >>> from asgd.cluster import protocols, timing
      >>> law = staleness_law(protocols.asynchronous(), timing.exponential(1.0), 4)
      >>> law[:3].tolist(), round(float(law @ range(len(law))), 6)
      ([0.25, 0.1875, 0.140625], 3.0)
    """
    if method not in ("auto", "exact", "poisson", "simulation"):
        raise ValueError(f"method must be auto, exact, poisson or simulation, got {method!r}")
    clock = as_timing(timing)
    integer("num_workers", num_workers, least=1)
    size = protocol.gradients_per_update(num_workers)
    if method == "poisson":
        if not never_waiting(protocol):
            raise ValueError(f"method='poisson' is for workers that never wait, not {protocol}")
        return _updates_among(_poisson(clock, num_workers), protocol, size)
    if method in ("auto", "exact"):
        law = exact_law(protocol, clock, num_workers, size)
        if law is not None:
            return law
        if method == "exact":
            raise ValueError(f"method='exact' has no law for {protocol} with these times: take "
                             "poisson or simulation")
    return law_in_trace(simulate(protocol, clock, num_workers, max(num_gradients, 20 * num_workers),
                                 seed))


def law_in_trace(trace: Any) -> np.ndarray:
    """Returns how often each staleness is applied in a trace, but for its first tenth."""
    first = len(trace) // 10
    late = trace.staleness[first:][trace.applied[first:]]
    if not late.size:
        raise ValueError("the trace applies no gradient")
    return np.bincount(late) / len(late)


def tail(law: np.ndarray, staleness: float) -> float:
    """Returns P(tau > staleness).

    Example:
      >>> tail(np.array([0.5, 0.25, 0.25]), 0)
      0.5
    """
    return float(np.sum(np.asarray(law)[np.arange(len(law)) > staleness]))


def never_waiting(protocol: Any) -> bool:
    """Returns whether workers never wait, and the server takes every gradient."""
    return isinstance(
        protocol, (protocols.Softsync, protocols.Asynchronous, protocols.KBatchAsync))


def exact_law(protocol: Any, clock: Timing, num_workers: int, size: int) -> np.ndarray | None:
    """Returns the law where it is known without approximation, else None."""
    if mean_staleness(protocol, num_workers) == 0.0:
        return np.ones(1)
    if not never_waiting(protocol):
        return None
    if times.memoryless(clock, num_workers):
        others = _geometric(1 / clock.cycle_means(num_workers))
        return None if others is None else _updates_among(others, protocol, size)
    cycle = times.cycle(clock, num_workers)
    if cycle is not None and cycle.name == "constant":
        others = np.zeros(num_workers)
        others[-1] = 1.0
        return _updates_among(others, protocol, size)
    return None


def _geometric(rates: np.ndarray) -> np.ndarray | None:
    """Law of the others' arrivals between two of a worker, for memoryless times."""
    if len(rates) == 1:
        return np.ones(1)
    shares, counts = np.unique(rates / rates.sum(), return_counts=True)
    lengths = np.ceil(math.log(_TAIL) / np.log1p(-shares))
    if lengths.sum() > _MOST:
        return None
    law = np.zeros(int(lengths.max()))
    for share, count, length in zip(shares, counts, lengths.astype(int)):
        law[:length] += count * share**2 * np.exp(np.arange(length) * math.log1p(-share))
    return _close(law)


def _poisson(clock: Timing, num_workers: int) -> np.ndarray:
    """Law of the others' arrivals in a cycle, averaged over the workers' gradients."""
    total = np.sum(1 / clock.cycle_means(num_workers))
    parts = []
    for kind, count in times.kinds(clock, num_workers).items():
        rate = 1 / kind.cycle_means(1)[0]
        nodes, weights = _cycle_quadrature(kind)
        parts.append((count * rate / total, (total - rate) * nodes, weights))
    # Few need the far end of heavy tails, where a matrix of all would not fit.
    mass = np.concatenate([share * weights for share, _, weights in parts])
    means = np.concatenate([mean for _, mean, _ in parts])
    order = np.argsort(means)
    beyond = 1 - np.cumsum(mass[order])
    largest = float(means[order][min(np.searchsorted(-beyond, -1e-6), len(order) - 1)])
    length = math.ceil(largest + 10 * math.sqrt(largest) + 20)
    law = np.zeros(length)
    for start in range(0, len(means), 64):
        rows = slice(start, start + 64)
        law += mass[rows] @ stats.poisson.pmf(np.arange(length), means[rows, None])
    return _close(law)


def _cycle_quadrature(clock: Timing):
    whole = times.cycle(clock, 1)
    if whole is not None:
        return times.quadrature(whole)
    if clock.pull.name == clock.push.name == "constant":
        nodes, weights = times.quadrature(clock.distributions(1)[0])
        return clock.slowdowns(1)[0] * nodes + clock.pull.mean + clock.push.mean, weights
    from asgd.cluster.simulate import Cluster

    drawn = np.sort(Cluster(clock, 1, seed=0).durations(0, 100_000))
    return drawn.reshape(-1, 100).mean(axis=1), np.full(1000, 1e-3)


def _updates_among(others: np.ndarray, protocol: Any, size: int) -> np.ndarray:
    """Law of the updates among N arrivals; the phase of an update's gradients is uniform."""
    if getattr(protocol, "pull", "after") == "before":
        # What the worker's own last gradient triggers comes after its pull.
        others = np.concatenate([[0.0], others])
    law = np.zeros((len(others) - 1 + size - 1) // size + 1)
    for phase in range(size):
        np.add.at(law, (np.arange(len(others)) + phase) // size, others / size)
    return np.trim_zeros(law, "b")


def _close(law):
    law[-1] += max(0.0, 1 - law.sum())
    return law / law.sum()

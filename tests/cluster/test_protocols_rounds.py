"""Synchronous rounds: small traces by hand, and the papers' times per update.

With exponential times of rate mu all P workers are as good as new at any moment. The k-th of P
arrives after independent exponential times of rates P mu, (P - 1) mu, ..., (P - k + 1) mu, the k-th
gradient of workers that never stop after k of rate P mu (Dutta et al. 2018):

    K-sync, K-async: mean (H_P - H_{P-k}) / mu, variance sum_{i=P-k+1}^P 1 / (i mu)^2
    K-batch-sync, K-batch-async: mean k / (P mu), variance k / (P mu)^2.

Updates are that far apart independently of each other, so the standard error of their mean is
known. Tolerances are five standard errors.
"""

import math

import numpy as np
import pytest

from asgd.cluster import Timing, Trace, protocols, simulate, timing

UNEQUAL = Timing(timing.constant(1.0), slowdown=[2.0, 3.0, 5.0])


class Script:
    """A cluster whose durations are written down; what comes after them takes for ever."""

    def __init__(self, *durations):
        self.num_workers = len(durations)
        self._left = [list(times) for times in durations]

    def durations(self, worker, size):
        left = self._left[worker]
        taken, left[:size] = left[:size], []
        return np.array(taken + [1e9] * (size - len(taken)))


def columns(trace, *names):
    return [getattr(trace, name).astype(float).tolist() for name in names]


def test_k_sync_by_hand():
    # 2 and 3 seconds after all have begun; the third worker never gets that far.
    trace = simulate(protocols.k_sync(2), UNEQUAL, 3, 5, seed=0)
    assert columns(trace, "worker", "finish_time") == [[0, 1, 0, 1, 0], [2, 3, 5, 6, 8]]
    assert columns(trace, "start_time", "version") == [[0, 0, 3, 3, 6], [0, 0, 1, 1, 2]]
    assert columns(trace, "updates", "staleness") == [[0, 1, 0, 1, 0], [0] * 5]


def test_k_sync_takes_a_cancelled_workers_next_duration():
    # Rounds end at 2 (worker 1), 5 (worker 2, as 9 of worker 0 is cancelled) and 7 (worker 2).
    cluster = Script([1, 9, 1], [2, 2, 9], [9, 3, 2])
    trace = Trace(**protocols.k_sync(2).columns(cluster, 6))
    assert columns(trace, "worker", "finish_time") == [[0, 1, 1, 2, 0, 2], [1, 2, 4, 5, 6, 7]]
    assert columns(trace, "start_time", "version") == [[0, 0, 2, 2, 5, 5], [0, 0, 1, 1, 2, 2]]


def test_k_batch_sync_by_hand():
    # Worker 0 gives two of the three mini-batches of each round, which lasts 4 seconds.
    trace = simulate(protocols.k_batch_sync(3), UNEQUAL, 3, 6, seed=0)
    assert columns(trace, "worker", "finish_time") == [[0, 1, 0, 0, 1, 0], [2, 3, 4, 6, 7, 8]]
    assert columns(trace, "start_time", "version") == [[0, 0, 2, 4, 4, 6], [0, 0, 0, 1, 1, 1]]
    assert columns(trace, "updates", "staleness") == [[0, 0, 1, 0, 0, 1], [0] * 6]
    # Both arrive at 4: worker 0 goes first and makes the update, and the 4 of worker 1 is lost. At
    # 6 worker 0 makes the next one; the 5 that worker 1 began at 5 is lost.
    cluster = Script([1, 3, 2, 1, 4], [4, 1, 5, 3])
    trace = Trace(**protocols.k_batch_sync(2).columns(cluster, 6))
    assert columns(trace, "worker", "finish_time") == [[0, 0, 1, 0, 0, 1], [1, 4, 5, 6, 7, 9]]
    assert columns(trace, "start_time", "version") == [[0, 1, 4, 4, 6, 6], [0, 0, 1, 1, 2, 2]]


def test_backup_workers_by_hand():
    # Two of three make an update, at 3, 7 and 10. Worker 2 is late at 5, begins at once and makes
    # the update of 7; so does worker 1 at 9, for that of 10.
    cluster = Script([2, 4, 3], [3, 6, 1], [5, 2, 4])
    trace = Trace(**protocols.backup_workers(1).columns(cluster, 8))
    assert columns(trace, "worker", "finish_time") == [
        [0, 1, 2, 0, 2, 1, 0, 1],
        [2, 3, 5, 7, 7, 9, 10, 10],
    ]
    assert columns(trace, "start_time") == [[0, 0, 0, 3, 5, 3, 7, 9]]
    assert columns(trace, "read_version", "version") == [
        [0, 0, 0, 1, 1, 1, 2, 2],
        [0, 0, 1, 1, 1, 2, 2, 2],
    ]
    assert columns(trace, "applied", "updates") == [
        [1, 1, 0, 1, 1, 0, 1, 1],
        [0, 1, 0, 0, 1, 0, 0, 1],
    ]


def order_statistic(k, workers):
    """Mean and variance of the k-th of so many exponential times of mean 1."""
    rates = np.arange(workers - k + 1, workers + 1)
    return (1 / rates).sum(), (1 / rates**2).sum()


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", ["k_sync", "k_async", "k_batch_sync", "k_batch_async"])
def test_time_per_update_with_exponential_times(name, k):
    workers, rounds, mean = 8, 10_000, 2.0
    protocol = getattr(protocols, name)(k)
    trace = simulate(protocol, timing.exponential(mean), workers, k * rounds, seed=1)
    assert trace.num_updates == rounds and trace.updates[-1] and trace.applied.all()
    expected, variance = (k / workers, k / workers**2) if "batch" in name else order_statistic(
        k, workers)
    error = mean * math.sqrt(variance / rounds)
    assert trace.finish_time[-1] / rounds == pytest.approx(mean * expected, abs=5 * error)
    if name.endswith("_sync"):
        assert (trace.staleness == 0).all()


def test_k_sync_waits_for_the_kth_of_any_times():
    # A shift is in every time, so also in the k-th shortest.
    workers, k, rounds = 10, 7, 20_000
    times = timing.shifted_exponential(shift=1.5, mean=2.0)
    trace = simulate(protocols.k_sync(k), times, workers, k * rounds, seed=0)
    expected, variance = order_statistic(k, workers)
    error = 0.5 * math.sqrt(variance / rounds)
    assert trace.finish_time[-1] / rounds == pytest.approx(1.5 + 0.5 * expected, abs=5 * error)
    # All workers are alike, so each has its share of the gradients.
    share = np.bincount(trace.worker, minlength=workers) / rounds
    assert share == pytest.approx(k / workers, abs=5 * math.sqrt(0.7 * 0.3 / rounds))


def test_backup_workers_with_exponential_times():
    # A round is a Markov chain: while f fresh and l late workers compute, one of them arrives after
    # a time of rate (f + l) mu. A fresh one then waits, a late one turns fresh. The round ends when
    # `spare` are left, which are late in the next one.
    workers, spare, rounds = 6, 2, 10_000

    def moments(fresh, late):
        """Means and second moments of the round's remaining time and late arrivals."""
        rate = fresh + late
        if rate == spare:
            return np.zeros(4)
        out = np.zeros(4)
        for share, drop, then in ((fresh / rate, 0, (fresh - 1, late)),
                                  (late / rate, 1, (fresh + 1, late - 1))):
            if share:
                time, time2, drops, drops2 = moments(*then)
                out += share * np.array([
                    1 / rate + time, 2 / rate**2 + 2 * time / rate + time2,
                    drop + drops, drop + 2 * drop * drops + drops2])
        return out

    time, time2, drops, drops2 = moments(workers - spare, spare)
    trace = simulate(protocols.backup_workers(spare), timing.exponential(1.0), workers,
                     10 * rounds, seed=0)
    ends = np.flatnonzero(trace.updates)[: rounds + 1]  # The first round has no late workers.
    assert len(ends) == rounds + 1
    period = (trace.finish_time[ends[-1]] - trace.finish_time[ends[0]]) / rounds
    assert period == pytest.approx(time, abs=5 * math.sqrt((time2 - time**2) / rounds))
    dropped = np.count_nonzero(~trace.applied[ends[0] : ends[-1]]) / rounds
    assert dropped == pytest.approx(drops, abs=5 * math.sqrt((drops2 - drops**2) / rounds))
    assert (trace.applied == (trace.staleness == 0)).all()

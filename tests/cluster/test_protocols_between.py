"""K-async, SSP and the threshold: small traces by hand, and their definitions on every row.

The definitions are stated on whole traces, without a queue: what a worker reads, and when, follows
from when the others arrived, and every duration is the worker's next one.
"""

import numpy as np
import pytest

from asgd.cluster import Timing, protocols, simulate, timing
from asgd.cluster.simulate import Cluster

SLOWDOWN = (1.0, 1.0, 1.0, 1.0, 3.0, 30.0)
CLOCK = Timing(timing.gamma(1.0, cv=0.5), slowdown=SLOWDOWN)
WORKERS, LENGTH = len(SLOWDOWN), 2000


def run(protocol, length=LENGTH):
    return simulate(protocol, CLOCK, WORKERS, length, seed=7)


def constant(*durations):
    return Timing(timing.constant(1.0), slowdown=durations)


def columns(trace, *names):
    return [getattr(trace, name).astype(float).tolist() for name in names]


def durations():
    cluster = Cluster(CLOCK, WORKERS, seed=7)
    return [cluster.durations(worker, 2 * LENGTH) for worker in range(WORKERS)]


def created(trace):
    """When each version came to be."""
    return np.concatenate([[0.0], trace.finish_time[trace.updates]])


def test_k_async_by_hand():
    # Updates at 3, 5 (worker 2's gradient is of version 0), 7 and 10; times are 2, 3 and 5.
    trace = simulate(protocols.k_async(2), constant(2.0, 3.0, 5.0), 3, 9, seed=0)
    assert columns(trace, "worker", "finish_time") == [
        [0, 1, 0, 2, 1, 0, 0, 1, 2],
        [2, 3, 5, 5, 6, 7, 9, 10, 10],
    ]
    assert columns(trace, "start_time") == [[0, 0, 3, 0, 3, 5, 7, 7, 5]]
    assert columns(trace, "read_version", "version") == [
        [0, 0, 1, 0, 1, 2, 3, 3, 2],
        [0, 0, 1, 1, 2, 2, 3, 3, 4],
    ]
    assert columns(trace, "updates") == [[0, 1, 0, 1, 0, 1, 0, 1, 0]] and trace.applied.all()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_async_waits_for_the_update_and_has_the_mean_staleness(k):
    length = k * (LENGTH // k)
    trace = run(protocols.k_async(k), length)
    assert np.flatnonzero(trace.updates).tolist() == [*range(k - 1, length, k)]
    for members in trace.worker.reshape(-1, k):
        assert len(set(members)) == k  # Different workers.
    draws, times = durations(), created(trace)
    for worker in range(WORKERS):
        mine = np.flatnonzero(trace.worker == worker)
        # What it reads is made by the update that it has waited for.
        read = np.concatenate([[0], trace.version[mine[:-1]] + 1])
        np.testing.assert_array_equal(trace.read_version[mine], read)
        np.testing.assert_array_equal(trace.start_time[mine], times[read])
        finish = times[read] + draws[worker][: len(mine)]
        np.testing.assert_array_equal(trace.finish_time[mine], finish)
    # So each worker's tau + 1 add up to the number of updates U, apart from what is under way at
    # the end: the mean is (P U - k U) / (k U). The slowest takes 30, 2 of them for good measure.
    rate = trace.num_updates / trace.finish_time[-1]
    tolerance = (2 * 30 + 2 * 3 + 4 * 2) * rate / length
    assert trace.staleness.mean() == pytest.approx((WORKERS - k) / k, abs=tolerance)


def test_ssp_by_hand():
    # Worker 0 may be one ahead of worker 1: it waits at 2 till 4 and at 5 till 8.
    trace = simulate(protocols.ssp(1), constant(1.0, 4.0), 2, 6, seed=0)
    assert columns(trace, "worker", "finish_time") == [[0, 0, 1, 0, 1, 0], [1, 2, 4, 5, 8, 9]]
    assert columns(trace, "start_time", "read_version") == [
        [0, 1, 0, 4, 4, 8],
        [0, 1, 0, 3, 3, 5],
    ]
    assert trace.version.tolist() == [0, 1, 2, 3, 4, 5] and trace.updates.all()


@pytest.mark.parametrize("s", [0, 1, 3])
def test_ssp_bound_on_every_row(s):
    trace = run(protocols.ssp(s))
    assert trace.updates.all()
    finished = np.zeros((LENGTH + 1, WORKERS), int)  # By each worker, after so many events.
    finished[np.arange(1, LENGTH + 1), trace.worker] = 1
    finished = finished.cumsum(axis=0)
    least, times, draws = finished.min(axis=1), created(trace), durations()
    waits = 0
    for worker in range(WORKERS):
        arrived = 0  # Events up to and with the worker's last one.
        for clock, event in enumerate(np.flatnonzero(trace.worker == worker)):
            read = trace.read_version[event]
            assert finished[read, worker] == clock and clock - least[read] <= s
            # And it begins as soon as the bound holds: with one event less it did not.
            assert read == arrived or clock - least[read - 1] > s
            assert trace.start_time[event] == times[read]
            assert trace.finish_time[event] == times[read] + draws[worker][clock]
            waits += read > arrived
            arrived = event + 1
    assert waits > 50
    assert (np.diff(trace.finish_time) >= 0).all()


def test_ssp_without_slack_has_the_times_of_hardsync():
    trace, rounds = run(protocols.ssp(0)), run(protocols.hardsync())
    for name in ("worker", "start_time", "finish_time"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(rounds, name))
    # All of a round read what the last round's last gradient made.
    assert trace.read_version.tolist() == [e // WORKERS * WORKERS for e in range(LENGTH)]


def test_threshold_by_hand():
    # Times 2 and 3, s = 1. At 6 worker 0 goes first; then worker 1's gradient is 2 updates old.
    clock = constant(2.0, 3.0)
    trace = simulate(protocols.staleness_threshold(1), clock, 2, 8, seed=0)
    assert columns(trace, "worker", "finish_time") == [
        [0, 1, 0, 0, 1, 0, 1, 0],
        [2, 3, 4, 6, 6, 8, 9, 10],
    ]
    assert columns(trace, "read_version", "version") == [
        [0, 0, 1, 3, 2, 4, 4, 5],
        [0, 1, 2, 3, 4, 4, 5, 6],
    ]
    assert columns(trace, "applied", "updates") == [[1, 1, 1, 1, 0, 1, 1, 1]] * 2
    # Worker 0's update at 6 would make it 2 old, so worker 1 begins again at 6, and again at 12.
    trace = simulate(protocols.staleness_threshold(1, "cancel"), clock, 2, 8, seed=0)
    assert columns(trace, "worker", "finish_time") == [
        [0, 1, 0, 0, 0, 1, 0, 0],
        [2, 3, 4, 6, 8, 9, 10, 12],
    ]
    assert columns(trace, "start_time", "read_version") == [
        [0, 0, 2, 4, 6, 6, 8, 10],
        [0, 0, 1, 3, 4, 4, 5, 7],
    ]
    assert trace.staleness.tolist() == [0, 1, 1, 0, 0, 1, 1, 0] and trace.updates.all()


@pytest.mark.parametrize("s", [0, 4, 12])
def test_threshold_drops_what_is_late(s):
    trace, free = run(protocols.staleness_threshold(s)), run(protocols.asynchronous())
    for name in ("worker", "start_time", "finish_time"):  # Dropping changes nobody's times.
        np.testing.assert_array_equal(getattr(trace, name), getattr(free, name))
    np.testing.assert_array_equal(trace.applied, trace.staleness <= s)
    np.testing.assert_array_equal(trace.updates, trace.applied)
    assert trace.staleness[trace.applied].max() == s and not trace.applied.all()
    for worker in range(WORKERS):
        mine = np.flatnonzero(trace.worker == worker)
        read = np.concatenate([[0], (trace.version + trace.updates)[mine[:-1]]])
        np.testing.assert_array_equal(trace.read_version[mine], read)


@pytest.mark.parametrize("s", [0, 1, 4, 12])
def test_threshold_cancels_what_would_be_late(s):
    trace = run(protocols.staleness_threshold(s, "cancel"))
    assert trace.updates.all() and trace.staleness.max() == s
    times, draws, cancelled = created(trace), durations(), 0
    for worker in range(WORKERS):
        now, version, expected = 0.0, 0, []
        for duration in draws[worker]:
            finish, too_old = now + duration, version + s + 1
            if too_old <= LENGTH and times[too_old] < finish:
                now, version = times[too_old], too_old
                cancelled += 1
                continue
            if finish > times[-1]:
                break
            expected.append((version, now, finish))
            now, version = finish, np.searchsorted(times[1:], finish, side="right")
        mine = trace.worker == worker
        names = ("read_version", "start_time", "finish_time")
        rows = list(zip(*(getattr(trace, name)[mine].tolist() for name in names), strict=True))
        assert rows == expected
    assert cancelled > LENGTH / 30

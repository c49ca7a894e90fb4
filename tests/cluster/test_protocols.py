"""Staleness laws and update periods of the protocols, from the papers' equations.

With workers that never wait, event e of worker w reads what w's previous event p left behind, so
the sum of all staleness telescopes. With c gradients per update and T events, and l_w the last
event of worker w,

    sum_e tau_e = sum_w floor((l_w + 1) / c) - floor(T / c)     if the trigger pulls after,
    sum_e tau_e = sum_w floor(l_w / c)                          if it pulls before.

As T - l_w stays bounded while T grows, the mean tends to (lambda - 1) / c and lambda / c for any
distribution of times. What is missing at finite T is the age of the gradients in flight at the end:
in steady state sum_w (T - l_w) is about lambda^2 (1 + CV^2) / 2, and flooring adds at most
lambda c, so the mean is at most (lambda^2 (1 + CV^2) / 2 + lambda c) / (c T) too small on average.
"""

import json
import math

import numpy as np
import pytest

from asgd.cluster import protocols, simulate, timing

WORKERS = 30
# name -> (times of mean 2, squared CV).
TIMES = {
    "constant": (timing.constant(2.0), 0.0),
    "exponential": (timing.exponential(2.0), 1.0),
    "gamma": (timing.gamma(2.0, cv=0.5), 0.25),
    "lognormal": (timing.lognormal(2.0, cv=math.sqrt(math.e - 1)), math.e - 1),
    "pareto": (timing.pareto(2.0, shape=2.5), 1 / 1.25),
}
# n -> c and the mean staleness of pull="after" and "before", lambda = 30.
SOFTSYNC = {1: (30, 29 / 30, 1.0), 2: (15, 29 / 15, 2.0), 15: (2, 14.5, 15.0), 30: (1, 29.0, 30.0)}


def run(protocol, times, num_gradients, workers=WORKERS, seed=0):
    return simulate(protocol, times, workers, num_gradients, seed)


@pytest.mark.parametrize("n", SOFTSYNC)
@pytest.mark.parametrize("name", TIMES)
def test_mean_staleness_is_independent_of_the_times(name, n):
    times, square_cv = TIMES[name]
    size, after, before = SOFTSYNC[n]
    length = 200_000
    # Five times the mean deficit: ages are positive, and 30 of them average out.
    tolerance = 5 * (WORKERS**2 * (1 + square_cv) / 2 + WORKERS * size) / (size * length)
    for pull, expected in (("after", after), ("before", before)):
        trace = run(protocols.softsync(n, pull=pull), times, length)
        assert trace.staleness.mean() == pytest.approx(expected, abs=tolerance)
        last = np.array([np.flatnonzero(trace.worker == w)[-1] for w in range(WORKERS)])
        if pull == "after":
            total = ((last + 1) // size).sum() - length // size
        else:
            total = (last // size).sum()
        assert trace.staleness.sum(dtype=np.int64) == total


@pytest.mark.parametrize("n", SOFTSYNC)
@pytest.mark.parametrize("name", TIMES)
def test_update_period(name, n):
    times, square_cv = TIMES[name]
    size, length = SOFTSYNC[n][0], 200_000
    trace = run(protocols.softsync(n), times, length)
    period = trace.finish_time[-1] / trace.num_updates
    # Renewal theorem: c E[T] / lambda. The count has variance T CV^2; starting all workers at
    # once shifts it by lambda (CV^2 - 1) / 2 and the last group may be incomplete.
    tolerance = 5 * math.sqrt(square_cv / length) + (WORKERS * (1 + square_cv) + size) / length
    assert period == pytest.approx(size * 2.0 / WORKERS, rel=tolerance)


@pytest.mark.parametrize(
    "times, expected",
    [
        (timing.exponential(1.0), 0.127),
        (timing.gamma(1.0, cv=0.5), 0.035),
        (timing.lognormal(1.0, cv=math.sqrt(math.e - 1)), 0.111),
        (timing.gamma(1.0, cv=0.01), 0.0),
    ],
    ids=["exponential", "gamma4", "lognormal1", "near-deterministic"],
)
def test_tail_of_staleness_depends_on_the_times(times, expected):
    length = 1_000_000
    trace = run(protocols.softsync(30), times, length)
    # Neighbouring events overlap, so count one independent event in lambda; three standard
    # errors, and half a unit of the last digit that is given.
    error = math.sqrt(expected * (1 - expected) / (length / WORKERS))
    assert (trace.staleness > 60).mean() == pytest.approx(expected, abs=3 * error + 0.0005)


def test_memoryless_times_give_geometric_staleness():
    workers, length = 8, 500_000
    trace = run(protocols.asynchronous(), timing.exponential(1.0), length, workers=workers)
    tau = trace.staleness[10 * workers :]  # The start reads version 0, not a predecessor's.
    bins = 60
    p = (1 / workers) * (1 - 1 / workers) ** np.arange(bins)
    p = np.append(p, 1 - p.sum())
    observed = np.bincount(np.minimum(tau, bins), minlength=bins + 1)
    expected = p * len(tau)
    assert expected.min() > 5  # What the chi-square approximation needs.
    # Chi-square has mean `bins` and standard deviation sqrt(2 bins): the mean and five of them.
    assert (np.square(observed - expected) / expected).sum() < bins + 5 * math.sqrt(2 * bins)
    assert tau.var() == pytest.approx(workers * (workers - 1), rel=0.03)


def test_equal_constant_times_give_constant_staleness():
    trace = run(protocols.asynchronous(), timing.constant(1.0), 100, workers=7)
    assert trace.staleness[:7].tolist() == list(range(7))
    assert (trace.staleness[7:] == 6).all()
    before = run(protocols.asynchronous(pull="before"), timing.constant(1.0), 100, workers=7)
    assert (before.staleness[7:] == 7).all()


def test_softsync_by_hand():
    # Worker 0 arrives at 2, 4, 6, worker 1 at 3, 6, worker 2 at 5; c = floor(3 / 1) = 3.
    times = timing.Timing(timing.constant(1.0), slowdown=[2.0, 3.0, 5.0])
    trace = run(protocols.softsync(1), times, 6, workers=3)
    assert trace.worker.tolist() == [0, 1, 0, 2, 0, 1]
    assert trace.finish_time.tolist() == [2, 3, 4, 5, 6, 6]
    assert trace.updates.tolist() == [False, False, True, False, False, True]
    assert trace.version.tolist() == [0, 0, 0, 1, 1, 1]
    assert trace.read_version.tolist() == [0, 0, 0, 0, 1, 0]
    before = run(protocols.softsync(1, pull="before"), times, 6, workers=3)
    assert before.read_version.tolist() == [0, 0, 0, 0, 0, 0]
    assert before.version.tolist() == trace.version.tolist()


def test_softsync_with_n_equal_to_workers_is_asynchronous():
    times = timing.exponential(1.0)
    assert protocols.softsync(4).gradients_per_update(11) == 2  # floor(11 / 4)
    whole = run(protocols.softsync(5), times, 300, workers=5)
    each = run(protocols.asynchronous(), times, 300, workers=5)
    for name in ("worker", "read_version", "version", "updates", "start_time", "finish_time"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(each, name))
    assert whole.metadata["protocol"] == {"protocol": "softsync", "n": 5, "pull": "after"}
    assert each.metadata["protocol"] == {"protocol": "asynchronous", "pull": "after"}


def test_hardsync_makes_an_update_per_round():
    workers, rounds = 6, 50
    times = timing.Timing(timing.exponential(1.0), pull=timing.gamma(0.5, 1.0), push=0.25)
    trace = run(protocols.hardsync(), times, workers * rounds, workers=workers)
    assert (trace.staleness == 0).all()
    assert trace.version.tolist() == [e // workers for e in range(workers * rounds)]
    assert np.flatnonzero(trace.updates).tolist() == [*range(5, workers * rounds, workers)]
    ends = trace.finish_time.reshape(rounds, workers)[:, -1]
    starts = trace.start_time.reshape(rounds, workers)
    np.testing.assert_array_equal(starts[0], 0.0)
    np.testing.assert_array_equal(starts[1:], np.repeat(ends[:-1], workers).reshape(-1, workers))
    for members in trace.worker.reshape(rounds, workers):
        assert sorted(members) == list(range(workers))


def test_hardsync_round_lasts_as_long_as_its_slowest_worker():
    workers, rounds = 5, 20_000
    trace = run(protocols.hardsync(), timing.exponential(1.0), workers * rounds, workers=workers)
    # E[max of M exponentials] = H_M; its variance is sum 1/k^2. Five standard errors.
    harmonic = sum(1 / k for k in range(1, workers + 1))
    error = math.sqrt(sum(k**-2 for k in range(1, workers + 1)) / rounds)
    assert trace.finish_time[-1] / rounds == pytest.approx(harmonic, abs=5 * error)


def test_hardsync_orders_a_round_by_time_then_worker():
    times = timing.Timing(timing.constant(1.0), slowdown=[2.0, 1.0, 2.0, 1.0])
    trace = run(protocols.hardsync(), times, 10, workers=4)
    assert trace.worker.tolist() == [1, 3, 0, 2, 1, 3, 0, 2, 1, 3]
    assert trace.finish_time.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert trace.num_updates == 2  # The last round is cut off and makes no update.


@pytest.mark.parametrize("protocol", [protocols.hardsync(), protocols.asynchronous()])
def test_many_ties_are_ordered_by_worker(protocol):
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 4, size=300).astype(float)
    times = timing.Timing(timing.constant(1.0), slowdown=factors.tolist())
    trace = run(protocol, times, 1200, workers=300)
    keys = list(zip(trace.finish_time.tolist(), trace.worker.tolist(), strict=True))
    assert keys == sorted(keys)
    first = sorted(zip(factors.tolist(), range(300), strict=True))
    if protocol == protocols.hardsync():
        assert keys[:300] == first
    else:
        assert keys[:50] == first[:50]


@pytest.mark.parametrize(
    "protocol", [protocols.hardsync(), protocols.softsync(2), protocols.asynchronous("before")]
)
def test_protocols_are_values(protocol):
    assert protocol == eval(repr(protocol), vars(protocols))
    assert hash(protocol) == hash(eval(repr(protocol), vars(protocols)))
    assert json.loads(json.dumps(protocol.describe())) == protocol.describe()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: protocols.softsync(0), "n must be an integer >= 1, not 0"),
        (lambda: protocols.softsync(1.5), "n must be an integer >= 1, not 1.5"),
        (lambda: protocols.softsync(True), "n must be an integer >= 1, not True"),
        (lambda: protocols.softsync(1, "later"), "pull must be 'after' or 'before', not 'later'"),
        (lambda: protocols.asynchronous(None), "pull must be 'after' or 'before', not None"),
        (
            lambda: run(protocols.softsync(5), timing.constant(1.0), 10, workers=4),
            r"n of softsync must be in \[1, num_workers=4\]: 5",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()

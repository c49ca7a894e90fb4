"""Clusters that were fitted to traces: which times count, and simulations like their source."""

import json

import numpy as np
import pytest

from asgd.cluster import Timing, Trace, protocols, simulate, timing

ASYNCHRONOUS = {"protocol": {"protocol": "asynchronous", "pull": "after"}}


def recorded(law, workers=1, size=4000, seed=0, protocol=protocols.asynchronous()):
    return simulate(protocol, law, workers, size, seed)


def events(rows, metadata, num_workers=None):
    """A trace of (worker, start, finish), whose versions do not matter."""
    worker, start, finish = zip(*sorted(rows, key=lambda row: row[2]), strict=True)
    return Trace(
        worker,
        np.zeros(len(rows), int),
        start_time=start,
        finish_time=finish,
        num_workers=num_workers,
        metadata=metadata,
    )


def samples(trace, worker=0):
    return timing.fit(trace, ("empirical",)).compute[worker].samples


LAWS = [
    timing.exponential(2.0),
    timing.shifted_exponential(shift=1.5, mean=2.0),
    timing.gamma(2.0, cv=0.5),
    timing.lognormal(2.0, cv=0.8),
    timing.pareto(2.0, shape=3.0),
    timing.constant(1.0),
]
SOURCE = Timing(LAWS, slowdown=[1, 1, 1, 2, 1, 1])
WORKERS = 6


@pytest.fixture(scope="module")
def fitted():
    return timing.fit(recorded(SOURCE, WORKERS, 100_000))


def test_a_fitted_cluster_is_like_its_source(fitted):
    assert [law.name for law in fitted.compute] == [law.name for law in SOURCE.compute]
    source = recorded(SOURCE, WORKERS, 100_000, seed=5)
    again = recorded(fitted, WORKERS, 100_000, seed=6)
    for name in ("gradients", "staleness", "delay"):
        # Three times 8000 to 30,000 times of cv at most 1: three standard errors.
        expected, found = source.per_worker()[name], again.per_worker()[name]
        np.testing.assert_allclose(found, expected, rtol=0.045, err_msg=name)
    rates = [trace.summary()["updates_per_second"] for trace in (source, again)]
    assert rates[1] == pytest.approx(rates[0], rel=0.02)


def test_other_protocols_and_more_workers_on_a_fitted_cluster(fitted):
    twice = Timing(SOURCE.compute, slowdown=SOURCE.slowdown * 2)
    for protocol in (protocols.hardsync(), protocols.k_async(4), protocols.ssp(2)):
        for workers, clock in ((WORKERS, SOURCE), (2 * WORKERS, twice)):
            rate, expected = (
                simulate(protocol, each, workers, 12_000, 7).summary()["updates_per_second"]
                for each in (fitted, clock)
            )
            assert rate == pytest.approx(expected, rel=0.05)
    laws = fitted.distributions(2 * WORKERS)
    assert laws[WORKERS:] == laws[:WORKERS] == fitted.compute


def test_where_workers_wait_times_are_delays():
    clock = Timing(timing.constant(1.0), slowdown=[1.0, 2.0, 4.0])
    for protocol in (protocols.hardsync(), protocols.ssp(1), protocols.asynchronous()):
        found = timing.fit(recorded(clock, 3, 600, protocol=protocol)).compute
        assert [law.mean for law in found] == pytest.approx([1.0, 2.0, 4.0], rel=1e-9), protocol


def test_where_workers_never_wait_times_are_those_between_arrivals():
    # Cycles of a second with a gap of 0.25 before each read; the fifth comes 3 seconds late.
    late = 3.0 * (np.arange(20) >= 4)
    rows = [(0, k + 0.25 + late[k], k + 1.0 + late[k]) for k in range(20)]
    for metadata in (ASYNCHRONOUS, {**ASYNCHRONOUS, "recording": {}}):
        found = samples(events(rows, metadata))
        np.testing.assert_allclose(found, [0.75] + 3 * [1.0] + [0.75] + 15 * [1.0])
    for metadata in ({}, {"protocol": "asynchronous"}, {"protocol": {"protocol": "hardsync"}}):
        np.testing.assert_allclose(samples(events(rows, metadata)), [0.75] * 20)
    # Usual gaps are a part of the cycle even where they are longer than computing.
    rows = [(0, k + 0.9, k + 1.0) for k in range(20)]
    np.testing.assert_allclose(samples(events(rows, ASYNCHRONOUS))[1:], 1.0)
    # The next read may come before the arrival.
    rows = [(0, k - 0.5, k + 1.0) for k in range(20)]
    np.testing.assert_allclose(samples(events(rows, ASYNCHRONOUS))[1:], 1.0)


def test_lost_gradients_and_restarts_are_no_times():
    trace = recorded(timing.gamma(1.0, cv=0.2), workers=4, size=8000)
    true = [np.diff(trace.finish_time[trace.worker == w], prepend=0.0) for w in range(4)]
    kept = np.random.default_rng(0).random(len(trace)) > 0.1
    # And worker 3 is away for 50 seconds.
    away = 50.0 * ((trace.worker == 3) & (trace.start_time > 1000.0))
    columns = (trace.worker, trace.start_time + away, trace.finish_time + away)
    rows = [row for row, keep in zip(zip(*columns, strict=True), kept, strict=True) if keep]
    damaged = events(rows, trace.metadata)
    for worker in range(4):
        found = samples(damaged, worker)
        np.testing.assert_allclose(found, true[worker][kept[trace.worker == worker]], atol=1e-9)


def test_workers_with_few_times_share_everyones_law_and_keep_their_mean():
    lasting = {0: [1.0, 3.0] * 15, 1: [1.5, 2.5] * 5, 2: [300.0] * 9}
    rows = [(w, 400.0 * k, 400.0 * k + t) for w, times in lasting.items() for k, t in enumerate(times)]
    fitted = timing.fit(events(rows, {}, num_workers=4), ("empirical",))
    assert [fit.pooled for fit in fitted.fits] == [False, False, True, True]
    assert [fit.num_times for fit in fitted.fits] == [30, 10, 49, 49]
    assert [fit.worker for fit in fitted.fits] == [0, 1, 2, 3]
    assert fitted.compute[2].mean == pytest.approx(300)  # A straggler has few gradients.
    everybody = (60 + 20 + 2700) / 49
    for law, mean in zip(fitted.compute[2:], (300, everybody), strict=True):
        np.testing.assert_allclose(
            np.sort(law.samples), mean * np.repeat([0.5, 0.75, 1.0, 1.25, 1.5], [15, 5, 9, 5, 15]), rtol=1e-12)
    family = timing.fit(events(rows, {}, num_workers=4), ("gamma",))
    for law, mean in zip(family.compute[2:], (300, everybody), strict=True):
        assert law.mean == pytest.approx(mean, rel=1e-12)
    assert family.compute[2].parameters == family.compute[3].parameters
    assert timing.fit(events(rows[:1], {})).compute == (timing.constant(1.0),)


def test_prints_a_table_and_describes_itself(fitted):
    head, *lines = str(fitted).splitlines()
    assert head.split() == [
        "worker", "times", "distribution", "mean", "parameter", "log-likelihood", "KS", "p"]
    assert [line.split()[2] for line in lines] == [law.name for law in fitted.compute]
    assert lines[2].split()[:4] == [
        "2", str(fitted.fits[2].num_times), "gamma", f"{fitted.compute[2].mean:.4g}"]
    assert "cv 0." in lines[2] and "shape" in lines[4] and "shift 1.5" in lines[1]
    few = timing.fit(recorded(timing.constant(1.0), size=5))
    assert "all 5" in str(few)
    trace = recorded(fitted, 2, 10)
    assert trace.metadata["timing"] == json.loads(json.dumps(fitted.describe()))
    assert trace.metadata["timing"]["compute"][2]["distribution"] == "gamma"
    assert str(timing.fit(trace, "empirical")).split()[-3:] == ["-"] * 3

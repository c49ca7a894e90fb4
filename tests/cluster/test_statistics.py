"""Statistics of a trace, against numbers counted by hand."""

import json

import numpy as np
import pytest

from asgd.cluster import Timing, Trace, protocols, simulate, timing


def test_statistics_by_hand():
    trace = Trace(
        worker=[0, 1, 0, 1, 0],
        read_version=[0, 0, 1, 1, 2],
        applied=[True, True, True, False, True],
        start_time=[1, 1, 3, 6, 8],
        finish_time=[2, 5, 6, 7, 11],
        num_workers=3,
    )
    assert trace.version.tolist() == [0, 1, 2, 3, 3]
    # The dropped gradient's staleness, 2, does not count: 0, 1, 1, 1.
    summary = trace.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["staleness"]["mean"] == 0.75 and summary["staleness"]["max"] == 1
    assert summary["staleness"]["quantiles"]["0"] == 0
    assert list(summary["delay"]["quantiles"]) == ["0", "0.5", "0.9", "0.99", "1"]
    # Delays 1, 4, 3, 1, 3; at .9 linearly between the two largest: 3 + .6 * (4 - 3).
    assert summary["delay"]["mean"] == pytest.approx(2.4)
    assert summary["delay"]["quantiles"]["0.5"] == 3
    assert summary["delay"]["quantiles"]["0.9"] == pytest.approx(3.6)
    # Ten virtual seconds from the first start to the last arrival.
    assert summary["gradients_per_second"] == 0.5 and summary["updates_per_second"] == 0.4
    assert (summary["gradients"], summary["applied"], summary["updates"]) == (5, 4, 4)
    # Worker 0 idles 2..3 and 6..8 of 1..11, worker 1 idles 5..6 of 1..7.
    assert summary["idle_fraction"] == [pytest.approx(0.3), pytest.approx(1 / 6), None]

    assert trace.staleness_histogram().tolist() == [1, 3]
    assert trace.staleness_histogram(0).tolist() == [1, 2]
    assert trace.staleness_histogram(worker=1).tolist() == [0, 1]
    assert trace.staleness_histogram(2).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"worker must be in \[0, num_workers=3\), not 3"):
        trace.staleness_histogram(3)
    by_worker = trace.per_worker()
    assert by_worker["gradients"].tolist() == [3, 2, 0]
    assert by_worker["applied"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(by_worker["staleness"], [2 / 3, 1, np.nan])
    np.testing.assert_allclose(by_worker["delay"], [7 / 3, 2.5, np.nan])
    text = str(trace)
    assert text == trace.describe() and "mean 0.75" in text and "5 gradients" in text
    assert repr(trace) == "Trace(5 gradients, 3 workers, 4 updates)"


def test_idle_time_is_that_of_the_protocol():
    times = Timing(timing.constant(1.0), slowdown=[1.0, 4.0])
    free = simulate(protocols.asynchronous(), times, 2, 100, 0)
    assert free.summary()["idle_fraction"] == [0.0, 0.0]
    # Worker 0 waits 3 of 4 seconds, but after its last arrival no wait is counted.
    rounds = simulate(protocols.hardsync(), times, 2, 200, 0)
    assert rounds.summary()["idle_fraction"] == [pytest.approx(99 * 3 / (99 * 4 + 1)), 0.0]


def test_a_late_start_is_no_idle_time():
    trace = Trace([0, 1], [0, 0], start_time=[0, 5], finish_time=[1, 6])
    assert trace.per_worker()["idle_fraction"].tolist() == [0.0, 0.0]


def test_a_start_before_the_previous_arrival_is_no_negative_idle_time():
    trace = Trace([0, 0, 0], [0, 0, 0], start_time=[0, 0, 4], finish_time=[2, 3, 5])
    assert trace.per_worker()["idle_fraction"].tolist() == [0.2]


@pytest.mark.parametrize(
    "protocol, durations, events, idle",
    [
        # Update at 3, 5, 7, 10: worker 0 waits 2..3 of 0..9, worker 1 waits 6..7 of 0..10.
        (protocols.k_async(2), (2.0, 3.0, 5.0), 9, (1 / 9, 1 / 10, 0)),
        # Worker 0 waits 2..4 and 5..8 of 0..9.
        (protocols.ssp(1), (1.0, 4.0), 6, (5 / 9, 0)),
        # Worker 0 waits 2..3 and 5..6 of 0..8; worker 2, at 4 and 8, never does.
        (protocols.backup_workers(1), (2.0, 3.0, 4.0), 8, (2 / 8, 0, 0)),
        (protocols.staleness_threshold(1), (2.0, 3.0), 8, (0, 0)),
    ],
    ids=["k_async", "ssp", "backup_workers", "drop"],
)
def test_idle_time_of_protocols_that_do_not_cancel(protocol, durations, events, idle):
    trace = simulate(protocol, Timing(timing.constant(1.0), slowdown=durations), len(durations),
                     events, 0)
    by_worker = trace.per_worker()
    assert by_worker["idle_fraction"] == pytest.approx(idle)
    assert by_worker["cancelled_fraction"].tolist() == [0] * len(durations)
    assert "cancelled" not in str(trace)


def test_cancelled_time_is_no_idle_time():
    rows = {
        "worker": [0, 1, 1, 2, 0, 2],
        "read_version": [0, 0, 1, 1, 2, 2],
        "updates": [0, 1, 0, 1, 0, 1],
        "start_time": [0, 0, 2, 2, 5, 5],
        "finish_time": [1, 2, 4, 5, 6, 7],
    }
    protocol = protocols.k_sync(2).describe()
    trace = Trace(**rows, metadata={"protocol": protocol})
    # Worker 0 waits 1..2 for the update and is cancelled at 5, where it begins again: 0..6.
    # Worker 1 waits 4..5 but does not come back. Worker 2 begins with what was not cancelled.
    assert trace.summary()["idle_fraction"] == [pytest.approx(1 / 6), 0, 0]
    assert trace.summary()["cancelled_fraction"] == [pytest.approx(3 / 6), 0, 0]
    assert "idle: mean 5.6%, most 16.7%\ncancelled: mean 16.7%, most 50.0%" in str(trace)
    assert trace.head(5).per_worker()["cancelled_fraction"][0] == pytest.approx(3 / 6)
    # A log of a cluster does not say: gaps are idle.
    for metadata in ({}, {"protocol": "k_sync"}):
        log = Trace(**rows, metadata=metadata)
        assert log.per_worker()["idle_fraction"].tolist() == [pytest.approx(4 / 6), 0, 0]
        assert log.per_worker()["cancelled_fraction"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "protocol, durations, events, cancelled",
    [
        # Rounds end at 4 and 8: worker 1, at 3 and 7, loses 3..4 of 0..7. Worker 2 never arrives.
        (protocols.k_batch_sync(3), (2.0, 3.0, 5.0), 6, [0, 1 / 7, None]),
        # Worker 1 arrives at 3 and 9, and what it began at 3 is cancelled at 6.
        (protocols.staleness_threshold(1, "cancel"), (2.0, 3.0), 8, [0, 3 / 9]),
    ],
    ids=["k_batch_sync", "cancel"],
)
def test_who_never_waits_is_never_idle(protocol, durations, events, cancelled):
    trace = simulate(protocol, Timing(timing.constant(1.0), slowdown=durations), len(durations),
                     events, 0)
    summary = trace.summary()
    assert [x and round(x, 9) for x in summary["cancelled_fraction"]] == [
        x and round(x, 9) for x in cancelled
    ]
    assert summary["idle_fraction"] == [x if x is None else 0 for x in cancelled]

"""What holds for every protocol that waits, drops or cancels: special cases, prefixes, refusals.

Where two protocols' definitions agree, so must every row, also where times tie or are zero.
"""

import json

import numpy as np
import pytest

from asgd.cluster import Timing, Trace, protocols, simulate, timing
from asgd.cluster.protocols import synchronous

COLUMNS = ("worker", "read_version", "version", "applied", "updates", "start_time", "finish_time")
WORKERS = 7
TIMINGS = {
    "transit": Timing(
        timing.gamma(1.0, cv=0.5),
        pull=timing.exponential(0.2),
        push=timing.lognormal(0.3, cv=1.0),
        slowdown=(1.0, 1.0, 0.1, 3.0, 1.0, 20.0, 0.5),
    ),
    "exponential": timing.exponential(1.0),
    "ties": Timing(timing.constant(1.0), slowdown=(1, 2, 3, 1, 2, 3, 6)),
    "zeros": timing.empirical([0.0, 0.0, 0.0, 1.0, 2.0]),
}
NEW = {
    "k_sync": protocols.k_sync(3),
    "k_batch_sync": protocols.k_batch_sync(5),
    "k_async": protocols.k_async(3),
    "k_batch_async": protocols.k_batch_async(3),
    "backup_workers": protocols.backup_workers(2),
    "ssp": protocols.ssp(2),
    "drop": protocols.staleness_threshold(4),
    "cancel": protocols.staleness_threshold(4, on_late="cancel"),
}
HUGE = 2**40
SAME = {
    "k_sync(P)": (protocols.k_sync(WORKERS), protocols.hardsync()),
    "backup_workers(0)": (protocols.backup_workers(0), protocols.hardsync()),
    "k_async(P)": (protocols.k_async(WORKERS), protocols.hardsync()),
    "k_async(1)": (protocols.k_async(1), protocols.asynchronous()),
    "k_batch_async(2)": (protocols.k_batch_async(2), protocols.softsync(3)),  # floor(7 / 3)
    "ssp(inf)": (protocols.ssp(HUGE), protocols.asynchronous()),
    "drop(inf)": (protocols.staleness_threshold(HUGE), protocols.asynchronous()),
    "cancel(inf)": (protocols.staleness_threshold(HUGE, "cancel"), protocols.asynchronous()),
    # The first gradient of a version makes the next, and all others are cancelled, or dropped.
    "k_batch_sync(1)": (protocols.k_batch_sync(1), protocols.k_sync(1)),
    "cancel(0)": (protocols.staleness_threshold(0, "cancel"), protocols.k_sync(1)),
    "drop(0)": (protocols.staleness_threshold(0), protocols.backup_workers(WORKERS - 1)),
}


def assert_same(trace, expected):
    for column in COLUMNS:
        np.testing.assert_array_equal(
            getattr(trace, column), getattr(expected, column), err_msg=column
        )


@pytest.mark.parametrize("times", TIMINGS)
@pytest.mark.parametrize("name", SAME)
def test_special_cases(name, times):
    trace, expected = (simulate(p, TIMINGS[times], WORKERS, 1500, 4) for p in SAME[name])
    assert_same(trace, expected)


@pytest.mark.parametrize("times", ["transit", "ties", "zeros"])
@pytest.mark.parametrize("name", NEW)
def test_more_gradients_leave_the_first_ones_alone(name, times):
    long = simulate(NEW[name], TIMINGS[times], WORKERS, 3000, 1)
    for length in (1, 8, 1234):
        short = simulate(NEW[name], TIMINGS[times], WORKERS, length, 1)
        assert len(short) == length
        assert_same(short, long.head(length))


@pytest.mark.parametrize("protocol", [protocols.k_sync(3), protocols.hardsync()])
def test_rounds_may_be_drawn_in_blocks(monkeypatch, protocol):
    whole = simulate(protocol, TIMINGS["transit"], WORKERS, 1000, 0)
    monkeypatch.setattr(synchronous, "_BLOCK", 5 * WORKERS)
    assert_same(simulate(protocol, TIMINGS["transit"], WORKERS, 1000, 0), whole)


@pytest.mark.parametrize("name", NEW)
def test_a_further_worker_leaves_the_others_draws_alone(name):
    # All begin at 0, so what began there has taken the worker's first duration in any cluster.
    few, more = (
        {w: end for w, start, end in zip(trace.worker, trace.start_time, trace.finish_time)
         if start == 0}
        for trace in (simulate(NEW[name], timing.gamma(1.0, 0.5), w, 1000, 9) for w in (6, 7))
    )
    both = few.keys() & more.keys()
    assert len(both) >= 2 and all(few[worker] == more[worker] for worker in both)


@pytest.mark.parametrize("name", NEW)
def test_traces_are_valid_and_say_what_was_simulated(name, tmp_path):
    protocol = NEW[name]
    trace = simulate(protocol, TIMINGS["transit"], WORKERS, 500, 2)
    trace.save(tmp_path / "trace.npz")
    assert Trace.load(tmp_path / "trace.npz") == trace  # Which checks every invariant again.
    assert [getattr(trace, column).dtype.name for column in COLUMNS] == [
        *("int32", "int32", "int32", "bool", "bool", "float64", "float64")
    ]
    assert trace.metadata["protocol"] == protocol.describe()
    assert json.loads(json.dumps(protocol.describe())) == protocol.describe()
    public = name if name not in ("drop", "cancel") else "staleness_threshold"
    assert protocol.describe()["protocol"] == public
    assert protocol == eval(repr(protocol), vars(protocols))
    assert hash(protocol) == hash(eval(repr(protocol), vars(protocols)))
    # Whose gaps are not all idle: statistics need to know.
    cancels = name in ("k_sync", "k_batch_sync", "cancel")
    assert bool(protocol.describe().get("cancels")) is cancels


@pytest.mark.parametrize(
    "build, message",
    [
        *(
            (lambda name=name, n=bad: getattr(protocols, name)(n), f"{field} must be an integer")
            for name, field, bad in (
                ("k_sync", "k", 0), ("k_batch_sync", "k", 1.5), ("k_async", "k", True),
                ("k_batch_async", "k", None), ("backup_workers", "spare", -1), ("ssp", "s", -1),
                ("staleness_threshold", "s", 0.5),
            )
        ),
        (
            lambda: protocols.staleness_threshold(1, "stop"),
            "on_late must be 'drop' or 'cancel', not 'stop'",
        ),
        (
            lambda: protocols.k_sync(5).gradients_per_update(4),
            r"k of k_sync must be in \[1, num_workers=4\]: 5",
        ),
        (
            lambda: simulate(protocols.k_async(5), timing.constant(1.0), 4, 10, 0),
            r"k of k_async must be in \[1, num_workers=4\]: 5",
        ),
        (
            lambda: simulate(protocols.backup_workers(4), timing.constant(1.0), 4, 10, 0),
            r"spare of backup_workers must be in \[0, num_workers - 1=3\]: 4",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_gradients_per_update():
    sizes = {name: protocol.gradients_per_update(WORKERS) for name, protocol in NEW.items()}
    assert sizes == {
        "k_sync": 3, "k_batch_sync": 5, "k_async": 3, "k_batch_async": 3, "backup_workers": 5,
        "ssp": 1, "drop": 1, "cancel": 1,
    }
    # A worker may contribute several times, so a batch may be larger than the cluster.
    assert protocols.k_batch_sync(9).gradients_per_update(2) == 9
    for protocol in (protocols.k_batch_sync(9), protocols.k_batch_async(9)):
        trace = simulate(protocol, timing.exponential(1.0), 2, 30, 0)
        assert np.flatnonzero(trace.updates).tolist() == [8, 17, 26]
    never = simulate(protocols.k_batch_async(HUGE), timing.exponential(1.0), 2, 30, 0)
    assert never.num_updates == 0

"""Trace: invariants, defaults and equality."""

import dataclasses
import math

import numpy as np
import pytest

from asgd.cluster import Trace

GOOD = {
    "worker": [0, 1, 0, 2],
    "read_version": [0, 0, 1, 0],
    "version": [0, 0, 1, 1],
    "applied": [True, True, False, True],
    "updates": [False, True, False, True],
    "start_time": [0.0, 0.0, 2.0, 0.5],
    "finish_time": [1.0, 2.0, 3.0, 3.0],
    "num_workers": 4,
    "metadata": {"host": "test"},
    "batch": [0, 2, 1, 9],
}
ARRAYS = [*list(GOOD)[:7], "batch"]


def test_positional_order_types_and_read_only():
    assert [field.name for field in dataclasses.fields(Trace)] == list(GOOD)
    trace = Trace(*GOOD.values())
    kinds = ("int32", "int32", "int32", "bool", "bool", "float64", "float64", "int32")
    for name, kind in zip(ARRAYS, kinds, strict=True):
        column = getattr(trace, name)
        assert column.tolist() == GOOD[name] and column.dtype.name == kind
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
    assert len(trace) == 4 and trace.num_workers == 4 and trace.num_updates == 2
    assert trace.staleness.tolist() == [0, 0, 0, 1] and trace.staleness.dtype == np.int32
    assert trace.delay.tolist() == [1.0, 2.0, 1.0, 2.5] and trace.delay.dtype == np.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.num_workers = 5


def test_defaults():
    trace = Trace([0, 1, 0, 2], [0, 0, 1, 3])
    assert trace.applied.all() and trace.updates.all()
    assert trace.version.tolist() == [0, 1, 2, 3]
    assert trace.finish_time.tolist() == [1, 2, 3, 4]
    assert trace.start_time.tolist() == [0, 0, 1, 3]  # Version v was created by event v - 1.
    assert trace.num_workers == 3 and trace.metadata == {}
    assert trace.batch.tolist() == [0, 1, 2, 3]
    dropped = Trace([0, 1, 0, 1], [0, 0, 1, 2], applied=[0, 1, 1, 1], finish_time=[2, 4, 6, 8])
    assert dropped.updates.tolist() == [False, True, True, True]
    assert dropped.version.tolist() == [0, 0, 1, 2]
    assert dropped.start_time.tolist() == [0, 0, 4, 6]


def test_converts_sequences_and_copies_arrays():
    worker = np.array([0.0, 1.0])
    trace = Trace(worker, (np.int64(0), 1), updates=[1, 0])
    worker[:] = 7
    assert trace.worker.tolist() == [0, 1]
    assert trace.updates.tolist() == [True, False]
    read, finish, updates = np.zeros(2, np.int32), np.array([1.0, 2.0]), np.array([True, False])
    trace = Trace([0, 1], read, updates=updates, finish_time=finish)
    read[0], finish[0], updates[0] = 5, 50.0, False
    assert trace.read_version.tolist() == [0, 0] and trace.updates.tolist() == [True, False]
    assert trace.finish_time.tolist() == [1.0, 2.0]


def test_empty_trace():
    trace = Trace([], [], num_workers=3)
    assert len(trace) == 0 and trace.num_updates == 0 and trace.worker.dtype == np.int32
    assert trace.summary()["staleness"]["mean"] is None
    assert trace.summary()["idle_fraction"] == [None] * 3
    assert trace.staleness_histogram().tolist() == []
    assert "0 gradients" in str(trace)


def test_ties_may_be_in_any_worker_order():
    Trace([2, 0, 1], [0, 0, 0], finish_time=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("worker", [0, 1, 4, 2], r"worker at row 2 is 4; it must be in \[0, num_workers=4\)"),
        ("worker", [0, -1, 0, -2], r"worker at row 1 is -1; it must be in \[0,"),
        ("worker", [0, 1, 0.5, 2], "worker at row 2 is 0.5; it must be an integer"),
        ("worker", [0, 1, 0, math.nan], "worker at row 3 is nan; it must be an integer"),
        ("worker", [0, 1, 0, 2**31], "worker at row 3 is 2147483648; it must be within int32"),
        ("worker", [0, 1, 0, -(2**31) - 1], "worker at row 3 is -2147483649; it must be within"),
        ("worker", [[0, 1], [0, 2]], r"worker must be one-dimensional, but has shape \(2, 2\)"),
        ("worker", [[0, 1], [0]], "worker must be one-dimensional"),
        ("worker", list("abcd"), "worker must hold numbers"),
        ("read_version", [0, 0, 1], "read_version has 3 rows but worker has 4"),
        ("read_version", [0, -3, 1, 0], "read_version at row 1 is -3; it must be >= 0"),
        (
            "read_version",
            [0, 0, 2, 3],
            "read_version at row 2 is 2; it must be at most the version it arrives at, 1: a "
            "version that does not exist yet would give a negative staleness",
        ),
        ("version", [1, 1, 2, 2], "version at row 0 is 1; it must be 0, the first version"),
        ("version", [0, 0, 1, 2], r"version at row 3 is 2; it must be 1, version \+ updates of"),
        ("version", [0, 1, 1, 1], "version at row 1 is 1; it must be 0"),
        ("applied", [1, 1, 0, 2], "applied at row 3 is 2; it must be True or False, or 0 or 1"),
        ("applied", list("abcd"), "applied must hold True or False, or 0 or 1"),
        ("applied", [True, True, False, False], "updates at row 3 is True; it must be False"),
        ("updates", [0, 1, 1, 0], "updates at row 2 is True; .* False where .* not applied"),
        ("start_time", [0, 0, math.nan, 0], "start_time at row 2 is nan; .* a finite time"),
        ("start_time", [0, 2.5, 2, 4], "start_time at row 1 is 2.5; it must be at most finish"),
        ("finish_time", [1, 2, math.inf, 3], "finish_time at row 2 is inf; .* a finite time"),
        ("finish_time", [1, 3, 2.5, 2], "finish_time at row 2 is 2.5; .* that of the row before"),
        ("finish_time", [1.0, 2.0], "finish_time has 2 rows but worker has 4"),
        ("batch", [0, 1, -1, 2], "batch at row 2 is -1; it must be >= 0"),
        ("batch", [0, 1, 0.5, 2], "batch at row 2 is 0.5; it must be an integer"),
        ("num_workers", 2, r"worker at row 3 is 2; it must be in \[0, num_workers=2\)"),
        ("num_workers", 0, "num_workers must be an integer >= 1, not 0"),
        ("num_workers", 4.0, "num_workers must be an integer >= 1, not 4.0"),
        ("metadata", ["a"], "metadata must be a dict that JSON can hold"),
        ("metadata", {"a": object()}, "metadata must be a dict that JSON can hold"),
        ("metadata", {"a": math.nan}, "metadata must be a dict that JSON can hold"),
    ],
)
def test_refuses_what_is_not_a_trace(field, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        Trace(**{**GOOD, field: value})
    assert "\n" not in str(caught.value)


def test_equality_compares_everything():
    trace = Trace(**GOOD)
    assert trace == Trace(**GOOD)
    changes = {
        "worker": [0, 1, 0, 3],
        "batch": [0, 2, 1, 3],
        "read_version": [0, 0, 0, 0],
        "applied": [True, True, True, True],
        "start_time": [0.0, 0.0, 2.0, np.nextafter(0.5, 1)],
        "finish_time": [1.0, 2.0, 3.0, np.nextafter(3, 4)],
        "num_workers": 5,
        "metadata": {},
    }
    for field, value in changes.items():
        assert trace != Trace(**{**GOOD, field: value}), field
    assert trace != Trace(**{**GOOD, "updates": [False, True, False, False]})
    assert trace != "trace"
    with pytest.raises(TypeError):
        hash(trace)

"""Plans of waves and slots: properties on many traces, checked by walking through them."""

import numpy as np
import pytest

import asgd
from asgd.cluster.protocols import asynchronous, hardsync, softsync
from asgd.cluster.timing import constant, exponential, lognormal
from asgd.emulation.waves import plan_waves

WIDTHS = [1, 2, 3, 8]


def random_trace(seed):
    """Random reads of any version that exists; many versions are never read."""
    rng = np.random.default_rng(seed)
    events, workers = int(rng.integers(1, 120)), int(rng.integers(1, 9))
    applied = rng.random(events) < rng.choice([0.5, 0.9, 1.0])
    updates = applied & (rng.random(events) < rng.choice([0.3, 0.8, 1.0]))
    version = np.cumsum(updates) - updates
    reach = rng.choice([1, 3, 30])
    read = np.maximum(0, version - rng.integers(0, reach + 1, events))
    return asgd.Trace(rng.integers(0, workers, events), read, applied=applied, updates=updates,
                      num_workers=workers)


def simulated():
    for seed, (protocol, timing, workers) in enumerate([
            (asynchronous(), exponential(1.0), 7), (asynchronous("before"), lognormal(1.0, 2.0), 5),
            (softsync(3), exponential(1.0), 11), (hardsync(), lognormal(1.0, 0.1), 4),
            (asynchronous(), constant(1.0), 6), (softsync(1), constant(1.0), 1)]):
        yield asgd.simulate(protocol, timing, workers, 90, seed)


TRACES = [*map(random_trace, range(40)), *simulated()]


def cuts_of(trace, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, len(trace) + 1, 3).tolist()


def fits(trace, start, event, width, cuts, distinct_workers):
    """Whether `event` may be in the wave that starts at `start` and has all events between."""
    return (event - start < width
            and trace.read_version[event] <= trace.version[start]
            and event not in cuts
            and not (distinct_workers and trace.worker[event] in trace.worker[start:event]))


@pytest.mark.parametrize("distinct_workers", [False, True])
@pytest.mark.parametrize("with_cuts", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_waves_are_valid_and_maximal(width, with_cuts, distinct_workers):
    for trace in TRACES:
        cuts = cuts_of(trace) if with_cuts else []
        plan = plan_waves(trace, width, cuts, distinct_workers)
        assert plan.width == width
        assert plan.first[0] == 0 and plan.first[-1] == len(trace)
        assert set(c for c in cuts) <= set(plan.first.tolist())
        for start, stop in zip(plan.first[:-1], plan.first[1:], strict=True):
            assert start < stop
            for event in range(start + 1, stop):
                assert fits(trace, start, event, width, cuts, distinct_workers)
            if stop < len(trace):
                assert not fits(trace, start, stop, width, cuts, distinct_workers)


@pytest.mark.parametrize("width", WIDTHS)
def test_greedy_needs_the_fewest_waves(width):
    """Against dynamic programming over all ways to cut the events into waves."""
    for trace in TRACES[::4]:
        fewest = [0] + [len(trace)] * len(trace)
        for start in range(len(trace)):
            stop = start + 1
            while True:
                fewest[stop] = min(fewest[stop], fewest[start] + 1)
                if stop == len(trace) or not fits(trace, start, stop, width, [], False):
                    break
                stop += 1
        assert plan_waves(trace, width).num_waves == fewest[-1]


def test_slots_hold_what_is_read():
    for trace in TRACES:
        plan = plan_waves(trace, 3)
        slots = {int(plan.read_slot[np.flatnonzero(trace.read_version == 0)[0]]): 0
                 } if 0 in trace.read_version else {}
        remaining = trace.read_version.tolist()
        for event in range(len(trace)):
            assert slots[int(plan.read_slot[event])] == trace.read_version[event]
            remaining.pop(0)
            slot = int(plan.write_slot[event])
            made = int(trace.version[event]) + 1
            # A version that somebody will read is written; another one where there is room.
            if slot < 0:
                assert not trace.updates[event] or (
                    made not in remaining
                    and all(slots.get(s) in remaining for s in range(plan.num_slots)))
            else:
                assert trace.updates[event]
                assert slots.get(slot) not in remaining
                slots[slot] = made
        assert max([*slots, 0]) < plan.num_slots


def test_the_first_version_may_be_anywhere_but_is_where_it_is_read():
    """All slots hold the initial parameters before the first event."""
    for trace in TRACES:
        plan = plan_waves(trace, 2)
        written = set()
        for event in range(len(trace)):
            if trace.read_version[event] == 0:
                assert int(plan.read_slot[event]) not in written
            written.add(int(plan.write_slot[event]))


def most_alive(trace):
    """Most versions alive at once; one lives from the update that makes it to its last read."""
    makers = [-1, *np.flatnonzero(trace.updates).tolist()]
    alive = np.zeros(len(trace) + 1, int)
    for version, maker in enumerate(makers):
        reads = np.flatnonzero(trace.read_version == version)
        if reads.size:
            # Between `maker` and the last read; at that event itself it is read, then freed.
            alive[maker + 1:reads[-1] + 1] += 1
    return max(1, alive.max())


@pytest.mark.parametrize("width", WIDTHS)
def test_number_of_slots_is_the_most_alive(width):
    for trace in TRACES:
        assert plan_waves(trace, width).num_slots == most_alive(trace)


@pytest.mark.parametrize("tau", [0, 1, 2, 5, 16])
def test_constant_staleness_is_the_ring_buffer(tau):
    events = 60
    read = np.maximum(0, np.arange(events) - tau)
    trace = asgd.Trace(np.arange(events) % (tau + 1), read)
    plan = plan_waves(trace, 8)
    assert plan.num_slots == tau + 1
    # While the staleness builds up all read version 0; then tau + 1 events go side by side.
    sizes = np.diff(plan.first)
    assert np.all(sizes[1:-1] == min(8, tau + 1))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("workers", [1, 4, 33])
def test_memory_is_bounded_by_the_workers_not_by_the_largest_staleness(workers, width):
    trace = asgd.simulate(asynchronous(), lognormal(1.0, 3.0), workers, 600, seed=workers)
    assert plan_waves(trace, width).num_slots <= workers + width
    if workers == 33:
        assert trace.staleness.max() > 3 * workers


def test_a_longer_trace_has_the_same_first_waves():
    trace = TRACES[-1]
    part = asgd.Trace(trace.worker[:50], trace.read_version[:50], updates=trace.updates[:50],
                      num_workers=trace.num_workers)
    whole = plan_waves(trace, 4).first
    np.testing.assert_array_equal(plan_waves(part, 4).first[:-1], whole[whole < 50])


@pytest.mark.parametrize("width", WIDTHS)
def test_no_events(width):
    plan = plan_waves(asgd.Trace([], []), width)
    assert plan.num_waves == 0 and plan.num_slots == 1 and len(plan.read_slot) == 0


def test_utilization_counts_places():
    plan = plan_waves(asgd.Trace([0, 1, 0, 1], [0, 0, 1, 2]), 2)
    assert plan.num_waves == 2 and plan.utilization == 1.0
    assert plan_waves(asgd.Trace([0] * 4, [0, 1, 2, 3]), 2).utilization == 0.5

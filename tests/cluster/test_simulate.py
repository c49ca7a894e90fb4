"""The vectorised simulation against an event-by-event one, and what a seed promises."""

import heapq
import json
import subprocess
import sys

import numpy as np
import pytest

from asgd.cluster import Timing, protocols, simulate, timing
from asgd.cluster.simulate import Cluster

COLUMNS = ("worker", "read_version", "version", "applied", "updates", "start_time", "finish_time")
UNEQUAL = (1.0, 1.0, 0.1, 3.0, 1.0, 20.0, 0.5)
TIMINGS = {
    "exponential": timing.exponential(1.0),
    "constant": timing.constant(1.0),
    "pareto": timing.pareto(1.0, shape=1.1),
    "transit": Timing(
        timing.gamma(1.0, cv=0.5),
        pull=timing.exponential(0.2),
        push=timing.lognormal(0.3, cv=1.0),
        slowdown=UNEQUAL,
    ),
    "constant transit": Timing(timing.exponential(1.0), pull=0.1, push=0.3, slowdown=UNEQUAL),
    "unlike": Timing(
        [timing.gamma(1.0, cv=0.5), timing.pareto(2.0, shape=1.5), timing.constant(0.3)],
        push=timing.exponential(0.1),
        slowdown=UNEQUAL,
    ),
    "ties": Timing(timing.constant(1.0), slowdown=(1, 2, 3, 1, 2, 3, 6)),
    "bursts": timing.empirical([0.0] * 199 + [1.0]),
    "zeros": timing.empirical([0.0, 0.0, 0.0, 1.0, 2.0]),
}


def event_by_event(cluster, num_gradients, size, pull):
    """Simulates with a queue of (arrival, worker, sequence), one cycle at a time."""
    queue, start, read = [], {}, {}
    rows = {name: [] for name in COLUMNS}

    def begin(worker, sequence, now, version):
        start[worker], read[worker] = now, version
        heapq.heappush(queue, (now + cluster.durations(worker, 1)[0], worker, sequence))

    for worker in range(cluster.num_workers):
        begin(worker, 0, 0.0, 0)
    version = collected = 0
    for _ in range(num_gradients):
        now, worker, sequence = heapq.heappop(queue)
        collected += 1
        update = collected == size
        row = (worker, read[worker], version, True, update, start[worker], now)
        for name, value in zip(COLUMNS, row, strict=True):
            rows[name].append(value)
        pulled = version
        if update:
            version, collected = version + 1, 0
            pulled = version if pull == "after" else pulled
        begin(worker, sequence + 1, now, pulled)
    return rows


@pytest.mark.parametrize("pull", ["after", "before"])
@pytest.mark.parametrize("n", [None, 1, 3, 7])
@pytest.mark.parametrize("name", TIMINGS)
def test_equals_event_by_event_simulation(name, n, pull):
    workers, length, seed = 7, 1500, 3
    if n is None:
        protocol, size = protocols.asynchronous(pull=pull), 1
    else:
        protocol, size = protocols.softsync(n, pull=pull), workers // n
    expected = event_by_event(Cluster(TIMINGS[name], workers, seed), length, size, pull)
    trace = simulate(protocol, TIMINGS[name], workers, length, seed)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(trace, column), expected[column], err_msg=column)


def test_fields_have_their_types():
    trace = simulate(protocols.asynchronous(), timing.exponential(1.0), 3, 50, 0)
    assert [getattr(trace, name).dtype.name for name in COLUMNS] == [
        *("int32", "int32", "int32", "bool", "bool", "float64", "float64")
    ]
    assert trace.num_workers == 3 and trace.applied.all()
    assert trace.start_time.min() == 0.0


@pytest.mark.parametrize("name", TIMINGS)
@pytest.mark.parametrize("protocol", [protocols.softsync(3), protocols.hardsync()])
def test_more_gradients_leave_the_first_ones_alone(name, protocol):
    long = simulate(protocol, TIMINGS[name], 7, 5000, 1)
    for length in (1, 6, 7, 100, 1234):
        short = simulate(protocol, TIMINGS[name], 7, length, 1)
        assert len(short) == length
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(short, column), getattr(long, column)[:length])


def test_a_further_worker_leaves_the_others_times_alone():
    times = Timing(timing.gamma(1.0, 0.5), pull=timing.exponential(0.2), push=0.1)
    few = simulate(protocols.asynchronous(), times, 4, 2000, 9)
    more = simulate(protocols.asynchronous(), times, 5, 2000, 9)
    for worker in range(4):
        a, b = (t.finish_time[t.worker == worker] for t in (few, more))
        length = min(len(a), len(b))
        assert length > 300
        np.testing.assert_array_equal(a[:length], b[:length])


def test_streams_are_those_of_seed_sequence():
    times = Timing(timing.exponential(1.0), pull=0.5, push=timing.exponential(1.0), slowdown=(1, 4))
    cluster = Cluster(times, 2, seed=11)
    child = np.random.SeedSequence(11).spawn(2)[1]
    compute = np.random.Generator(np.random.PCG64(child)).standard_exponential(5)
    push = np.random.Generator(np.random.PCG64(child.spawn(2)[1])).standard_exponential(5)
    np.testing.assert_array_equal(cluster.durations(1, 5), (0.5 + 4 * compute) + push)
    both = Timing(timing.exponential(1.0), pull=timing.exponential(2.0), push=times.push)
    child = np.random.SeedSequence(11).spawn(2)[1]
    pull = 2 * np.random.Generator(np.random.PCG64(child.spawn(1)[0])).standard_exponential(5)
    np.testing.assert_array_equal(Cluster(both, 2, 11).durations(1, 5), (pull + compute) + push)


def test_unlike_workers_draw_as_they_would_among_their_like():
    laws = [timing.exponential(1.0), timing.lognormal(2.0, cv=0.5), timing.gamma(1.0, cv=2.0)]
    unlike = Cluster(Timing(laws, pull=0.1, slowdown=range(1, 8)), 7, seed=4)
    for worker in range(7):
        times = Timing(laws[worker % 3], pull=0.1, slowdown=range(1, 8))
        like = Cluster(times, 7, seed=4).durations(worker, 20)
        np.testing.assert_array_equal(unlike.durations(worker, 20), like)


def test_streams_of_workers_and_of_transit_differ():
    times = Timing(timing.exponential(1.0), pull=timing.exponential(1.0))
    draws = [Cluster(times, 3, seed).durations(w, 4) for seed in (0, 1) for w in range(3)]
    assert len(np.unique(np.concatenate(draws))) == 24
    computing = Cluster(timing.exponential(1.0), 1, 0).durations(0, 4)
    pulling = Cluster(times, 1, 0).durations(0, 4) - computing
    assert (pulling > 0).all() and not np.allclose(pulling, computing)


def test_slowdown_multiplies_computing_only():
    times = Timing(timing.constant(1.0), pull=0.25, push=0.5, slowdown=[1.0, 3.0])
    trace = simulate(protocols.asynchronous(), times, 2, 5, 0)
    assert trace.worker.tolist() == [0, 0, 1, 0, 0]
    assert trace.finish_time.tolist() == [1.75, 3.5, 3.75, 5.25, 7.0]
    assert trace.start_time.tolist() == [0.0, 1.75, 0.0, 3.5, 5.25]


@pytest.mark.parametrize(
    "times, dispersions",
    [
        (timing.exponential(1.0), (1.0, 1.0, 1.0, 1.0)),
        (timing.gamma(1.0, cv=0.5), (0.98, 0.89, 0.41, 0.27)),
        (timing.gamma(1.0, cv=0.1), (0.98, 0.90, 0.08, 0.02)),
        (timing.lognormal(1.0, cv=np.sqrt(np.e - 1)), (0.99, 0.91, 1.0, 1.5)),
    ],
    ids=["exponential", "gamma4", "gamma100", "lognormal1"],
)
def test_arrivals_are_a_superposition_of_renewals(times, dispersions):
    # Poisson (1) in windows far below E[T], CV^2 far above.
    workers, length = 30, 600_000
    arrivals = simulate(protocols.asynchronous(), times, workers, length, 0).finish_time
    arrivals = arrivals[length // 3 :]  # Without the start, when all workers are in step.
    for window, expected in zip((0.02, 0.1, 1.0, 10.0), dispersions, strict=True):
        bins = ((arrivals - arrivals[0]) / window).astype(np.int64)
        counts = np.bincount(bins)[:-1]
        # Relative standard error of a Poisson count's sample variance; .01: the digits given.
        error = np.sqrt((2 + 1 / counts.mean()) / len(counts))
        tolerance = 4 * error * expected + 0.01
        assert counts.var() / counts.mean() == pytest.approx(expected, abs=tolerance), window


def test_repeats_and_says_what_was_simulated():
    times = Timing(timing.gamma(1.0, cv=0.5), push=0.5)
    arguments = {"timing": times, "num_workers": 3, "num_gradients": 40, "seed": 5}
    trace = simulate(protocol=protocols.softsync(2), **arguments)
    assert trace == simulate(protocol=protocols.softsync(2), **arguments)
    assert trace.metadata == json.loads(json.dumps(trace.metadata)) == {
        "protocol": {"protocol": "softsync", "n": 2, "pull": "after"},
        "timing": {
            "compute": {"distribution": "gamma", "mean": 1.0, "cv": 0.5},
            "pull": {"distribution": "constant", "mean": 0.0},
            "push": {"distribution": "constant", "mean": 0.5},
            "slowdown": None,
        },
        "seed": 5,
        "num_gradients": 40,
    }
    other = simulate(protocols.softsync(2), times, 3, 40, seed=6)
    assert not np.array_equal(other.finish_time, trace.finish_time)


def test_one_worker_is_sequential_and_many_workers_may_never_arrive():
    alone = simulate(protocols.asynchronous(), timing.exponential(1.0), 1, 100, 0)
    assert (alone.staleness == 0).all() and (alone.start_time[1:] == alone.finish_time[:-1]).all()
    crowd = simulate(protocols.asynchronous(), timing.exponential(1.0), 500, 20, 0)
    assert (crowd.read_version[:5] == 0).all() and len(crowd) == 20 and crowd.num_workers == 500


def test_never_imports_jax():
    code = "import asgd.cluster, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


GOOD = {
    "protocol": protocols.softsync(2),
    "timing": timing.constant(1.0),
    "num_workers": 4,
    "num_gradients": 10,
    "seed": 0,
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"protocol": "softsync"}, "protocol must be one of asgd.cluster.protocols"),
        ({"timing": 1.0}, "timing must be a Timing or a Distribution, not 1.0"),
        ({"num_workers": 0}, "num_workers must be an integer >= 1, not 0"),
        ({"num_workers": 2.5}, "num_workers must be an integer >= 1, not 2.5"),
        ({"num_gradients": 0}, "num_gradients must be an integer >= 1, not 0"),
        ({"num_gradients": 2**31}, r"num_gradients must be below 2\*\*31"),
        ({"seed": -1}, "seed must be an integer >= 0, not -1"),
        ({"seed": None}, "seed must be an integer >= 0, not None"),
        (
            {"timing": Timing(timing.constant(1.0), slowdown=[1.0] * 3)},
            "slowdown has 3 factors but num_workers is 4",
        ),
        ({"timing": timing.constant(1e308)}, "virtual times must stay finite"),
    ],
)
def test_bad_input(change, message):
    simulate(**GOOD)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        simulate(**{**GOOD, **change})
    assert "\n" not in str(caught.value)

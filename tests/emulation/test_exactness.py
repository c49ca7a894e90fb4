"""`asgd.emulate` against an independent event-by-event server in NumPy, in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing

WORKERS = 7
SLOWDOWN = [1.0, 1.3, 0.7, 2.0, 1.1, 3.1, 0.45]
EVENTS = 280
FEATURES, CLASSES, BATCH = 5, 3, 4
RATE, MOMENTUM, STRENGTH, DECAY, EPS = 0.02, 0.9, 0.4, 0.95, 1e-7

pytestmark = pytest.mark.usefixtures("x64")


def _problem():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(EVENTS, BATCH, FEATURES))
    labels = rng.integers(CLASSES, size=(EVENTS, BATCH))
    return inputs, labels, rng.normal(size=(FEATURES + 1) * CLASSES)


def _loss(params, batch):
    inputs, labels = batch
    logits = inputs @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _transformation(method, rate=RATE, strength=STRENGTH, momentum=MOMENTUM):
    match method:
        case "plain":
            return asgd.staleness_aware_sgd(rate, momentum, rule=asgd.constant)
        case "staleness_aware":
            return asgd.staleness_aware_sgd(rate, momentum)
        case "dc_c":
            return asgd.dc_asgd_c(rate, strength, momentum)
        case "dc_a_each":
            return asgd.dc_asgd_a(rate, strength, DECAY, EPS, momentum, num_workers=WORKERS)
        case "dc_a_all":
            return asgd.dc_asgd_a(rate, strength, DECAY, EPS, momentum)


def _reference(numpy_server, method, strength=lambda clock: STRENGTH):
    match method:
        case "plain":
            return numpy_server.plain
        case "staleness_aware":
            return numpy_server.staleness_aware
        case "dc_c":
            return numpy_server.compensated(strength)
    return numpy_server.compensated_adaptively(
        strength, DECAY, EPS, per_worker=method == "dc_a_each")


def _emulate(tx, trace, **options):
    inputs, labels, theta = _problem()
    weights = theta.reshape(FEATURES + 1, CLASSES)
    params = {"kernel": jnp.array(weights[:-1]), "bias": jnp.array(weights[-1])}
    result = asgd.emulate(_loss, tx, params, trace, (inputs, labels), **options)
    theta = np.concatenate([result.params["kernel"], result.params["bias"][None]])
    return theta, result.losses


def _serve(numpy_server, method, rate, momentum, run):
    inputs, labels, theta = _problem()
    server = numpy_server.Server(theta, method, rate, momentum)
    losses = run(server, lambda theta, event: numpy_server.softmax_regression(
        theta, inputs[event], labels[event]))
    return server.theta.reshape(FEATURES + 1, CLASSES), losses, server


def _assert_equal(actual, expected):
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == np.float64
        # A few hundred roundings of 1e-16, relative to the largest element of a sum.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def _simulate(n, pull="after"):
    cycle = timing.Timing(timing.lognormal(1.0, 0.4), pull=0.1, push=0.05, slowdown=SLOWDOWN)
    return asgd.simulate(protocols.softsync(n, pull), cycle, WORKERS, EVENTS, seed=5)


def _arrivals(trace):
    return [trace.finish_time[trace.worker == worker] for worker in range(WORKERS)]


# Every method with one gradient an update or with several; the irregular traces below have both.
@pytest.mark.parametrize("n, pull, method", [
    (1, "after", "plain"), (1, "after", "dc_a_each"), (3, "after", "staleness_aware"),
    (3, "after", "dc_c"), (3, "after", "dc_a_all"), (7, "after", "staleness_aware"),
    (7, "after", "dc_c"), (7, "after", "dc_a_each"), (3, "before", "plain"),
    (7, "before", "staleness_aware"), (3, "before", "dc_a_each")])
def test_softsync_from_arrival_times_alone(numpy_server, n, pull, method):
    trace = _simulate(n, pull)
    actual = _emulate(_transformation(method), trace)
    *expected, server = _serve(
        numpy_server, _reference(numpy_server, method), lambda clock: RATE, MOMENTUM,
        lambda server, gradient: numpy_server.run_softsync(
            server, gradient, _arrivals(trace), WORKERS // n, pull))
    assert server.clock == EVENTS // (WORKERS // n)
    _assert_equal(actual, expected)


def _irregular(drop, vary):
    """Columns of a random trace with dropped gradients or updates of 1 to 4 gradients."""
    rng = np.random.default_rng(8)
    held, version, missing = [0] * WORKERS, 0, 2
    columns = {"worker": [], "read_version": [], "applied": [], "updates": []}
    for _ in range(EVENTS):
        worker = int(rng.choice(WORKERS, p=np.arange(1, 8) / 28))
        applied = not (drop and rng.random() < 0.3)
        missing -= applied
        update = applied and missing == 0
        for name, value in zip(columns, (worker, held[worker], applied, update), strict=True):
            columns[name].append(value)
        if update:
            version += 1
            missing = int(rng.integers(1, 5)) if vary else 2
        held[worker] = version
    return columns


@pytest.mark.parametrize("drop, vary, method", [
    (True, False, "plain"), (True, False, "dc_c"), (True, False, "dc_a_each"),
    (False, True, "staleness_aware"), (False, True, "dc_a_each"), (False, True, "dc_a_all")])
def test_irregular_trace(numpy_server, method, drop, vary):
    columns = _irregular(drop, vary)
    assert all(columns["applied"]) != drop
    trace = asgd.Trace(**columns, num_workers=WORKERS)
    actual = _emulate(_transformation(method), trace)
    *expected, server = _serve(
        numpy_server, _reference(numpy_server, method), lambda clock: RATE, MOMENTUM,
        lambda server, gradient: numpy_server.replay(server, gradient, **columns))
    assert server.clock == sum(columns["updates"]) < EVENTS / 2
    _assert_equal(actual, expected)


@pytest.mark.parametrize("method", ["staleness_aware", "dc_c", "dc_a_each"])
def test_schedules_count_server_updates(numpy_server, method):
    trace = _simulate(3)
    rate = optax.join_schedules([optax.constant_schedule(0.04), lambda c: 0.02 / (c + 1)], [50])

    def strength(clock):
        return jnp.where(clock < 70, 0.3, 3.0)

    tx = _transformation(method, rate, strength)
    *expected, server = _serve(
        numpy_server, _reference(numpy_server, method, lambda clock: 0.3 if clock < 70 else 3.0),
        lambda clock: 0.04 if clock < 50 else 0.02 / (clock - 49), MOMENTUM,
        lambda server, gradient: numpy_server.run_softsync(
            server, gradient, _arrivals(trace), 2))
    assert server.clock == 140
    _assert_equal(_emulate(tx, trace), expected)


def test_several_devices(numpy_server):
    trace = _simulate(3)
    actual = _emulate(_transformation("dc_a_each"), trace, num_devices=3)
    *expected, _ = _serve(
        numpy_server, _reference(numpy_server, "dc_a_each"), lambda clock: RATE, MOMENTUM,
        lambda server, gradient: numpy_server.run_softsync(
            server, gradient, _arrivals(trace), 2))
    _assert_equal(actual, expected)


def test_no_memory_is_option_one(numpy_server):
    """DC-ASGD-a with m = 0 and eps = 0 is lambda0 |g| (paper E, Eq. 9), in either scope."""
    trace = _simulate(3)
    *expected, _ = _serve(
        numpy_server, numpy_server.compensated_option_one(lambda clock: STRENGTH),
        lambda clock: RATE, MOMENTUM,
        lambda server, gradient: numpy_server.run_softsync(
            server, gradient, _arrivals(trace), 2))
    for num_workers in (None, WORKERS):
        tx = asgd.dc_asgd_a(RATE, STRENGTH, 0.0, 0.0, MOMENTUM, num_workers=num_workers)
        _assert_equal(_emulate(tx, trace), expected)


def _large_batch_sgd(numpy_server, size, momentum):
    """Sequential SGD whose batches are `size` consecutive ones in one."""
    inputs, labels, theta = _problem()
    velocity = np.zeros_like(theta)
    for start in range(0, EVENTS, size):
        batch = slice(start, start + size)
        _, gradient = numpy_server.softmax_regression(
            theta, inputs[batch].reshape(-1, FEATURES), labels[batch].ravel())
        velocity = momentum * velocity + gradient
        theta = theta - RATE * velocity
    return theta.reshape(FEATURES + 1, CLASSES)


def test_hardsync_is_sgd_with_the_batches_of_all_workers(numpy_server):
    cycle = timing.Timing(timing.lognormal(1.0, 0.4), slowdown=SLOWDOWN)
    trace = asgd.simulate(protocols.hardsync(), cycle, WORKERS, EVENTS, seed=5)
    expected = _large_batch_sgd(numpy_server, WORKERS, MOMENTUM)
    for method in ("staleness_aware", "dc_a_each"):
        params, _ = _emulate(_transformation(method), trace)
        _assert_equal([params], [expected])


def test_frozen_reads_are_mini_batch_sgd(numpy_server):
    """Ten updates of a tenth of the rate, all read at the round's start: staleness 0 to 9."""
    event = np.arange(EVENTS)
    trace = asgd.Trace(worker=event % 10, read_version=event - event % 10)
    params, _ = _emulate(optax.sgd(RATE / 10), trace)
    _assert_equal([params], [_large_batch_sgd(numpy_server, 10, momentum=0.0)])


def test_numpy_gradient_is_the_derivative_of_its_loss(numpy_server):
    inputs, labels, theta = _problem()
    direction = np.random.default_rng(0).normal(size=theta.size)

    def loss(step):
        return numpy_server.softmax_regression(theta + step * direction, inputs[0], labels[0])[0]

    slope = numpy_server.softmax_regression(theta, inputs[0], labels[0])[1] @ direction
    # Central differences: step^2 of truncation and 1e-16 / step of rounding.
    assert abs((loss(1e-5) - loss(-1e-5)) / 2e-5 - slope) < 1e-8 * max(1, abs(slope))

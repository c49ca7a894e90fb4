"""Local steps and averaging against independent NumPy loops, and however they are executed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import averaging, timing
from asgd.emulation import AveragingEmulator
from tests.emulation.averaging_problem import (
    N, T, ROWS, WIDTH, RNG, X, Y, START, RATE, loss_fn, gradient, emulate)


def late_rate(step):
    return 0.2 / (1.0 + step)


@pytest.mark.parametrize("period, num_devices, rate", [
    (1, 1, late_rate), (2, 4, lambda step: RATE), (3, 1, late_rate), (7, 1, lambda step: RATE),
    (20, 1, late_rate)])
def test_the_cyclic_algorithm_equals_numpy(x64, numpy_averaging, period, num_devices, rate):
    result = emulate(period, optax.sgd(rate), num_devices=num_devices)
    server, local, discrepancy = numpy_averaging.cyclic(gradient, START, N, T, period, rate)
    np.testing.assert_allclose(result.params, server, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.worker_params, local, rtol=0, atol=1e-12)
    assert len(discrepancy) == T // period
    np.testing.assert_allclose(result.discrepancy, discrepancy, rtol=0, atol=1e-12)
    assert result.losses.shape == (T, N)
    np.testing.assert_allclose(result.losses[0], [
        np.mean((np.tanh(X[0, w] @ START) - Y[0, w]) ** 2) / 2 for w in range(N)], atol=1e-12)


@pytest.mark.parametrize("period, delay", [(4, 0), (4, 1), (4, 3), (1, 0)])
def test_overlapped_and_local_sgd_equal_numpy(x64, numpy_averaging, period, delay):
    result = emulate(period, delay=delay)
    mean, local = numpy_averaging.overlapped(gradient, START, N, T, period, delay, RATE)
    np.testing.assert_allclose(result.params, mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.worker_params, local, rtol=0, atol=1e-12)
    assert (result.discrepancy == 0).all() == (delay == 0)


@pytest.mark.parametrize("period", [1, 3])
def test_elastic_averaging_equals_numpy(x64, numpy_averaging, period):
    result = emulate(period, elasticity=0.15, num_devices=2)
    center, local = numpy_averaging.elastic(gradient, START, N, T, period, RATE, 0.15)
    np.testing.assert_allclose(result.params, center, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.worker_params, local, rtol=0, atol=1e-12)


@pytest.mark.parametrize("elasticity, num_devices", [(None, 4), (0.3, 2)])
def test_waves_that_do_not_end_with_a_step(x64, elasticity, num_devices):
    """What moves a worker is waited for, though its wave may hold others' steps."""
    few = X[:, :3], Y[:, :3]
    one, more = (emulate(1, batches=few, elasticity=elasticity, num_devices=n)
                 for n in (1, num_devices))
    np.testing.assert_array_equal(one.worker_params, more.worker_params)
    schedule = averaging.independent(3, 3 * T, [2, 3, 1], timing.gamma(1.0, 0.5), merge_time=1.3,
                                     takes=elasticity is None)
    few = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), few)
    one, more = (emulate(None, batches=few, elasticity=elasticity, schedule=schedule, num_devices=n)
                 for n in (1, num_devices))
    np.testing.assert_array_equal(one.worker_params, more.worker_params)
    np.testing.assert_array_equal(one.discrepancy, more.discrepancy)


def test_schedules_at_ones_own_pace_equal_a_replay_in_numpy(x64):
    schedule = averaging.whenever_ready(
        N, T * N, 5, timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 1, 4]), merge_time=0.7)
    batches = X.reshape(-1, ROWS, WIDTH), Y.reshape(-1, ROWS)
    result = emulate(None, batches=batches, schedule=schedule, num_devices=2)
    server, sent = START, []
    local, since = [START] * N, [np.zeros(WIDTH)] * N  # Parameters, and gains since the last release.
    actions = list(zip(schedule.after, schedule.action, schedule.member))
    for event, w in enumerate(schedule.worker):
        out = np.tanh(batches[0][event] @ local[w])
        step = -RATE * batches[0][event].T @ ((out - batches[1][event]) * (1 - out ** 2)) / ROWS
        local[w], since[w] = local[w] + step, since[w] + step
        while actions and actions[0][0] == event + 1:
            _, action, member = actions.pop(0)
            if action == averaging.RELEASE:
                sent.append(since[member])
                since[member] = np.zeros(WIDTH)
            elif action == averaging.MERGE:
                server, sent = server + np.mean(sent, axis=0), []
            elif action == averaging.TAKE:
                local[member] = server + since[member]
    np.testing.assert_allclose(result.params, server, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.worker_params, local, rtol=0, atol=1e-12)


def test_small_distances_of_half_precision_are_measured():
    """Squares of differences below 2e-4 are none in float16."""
    result = asgd.emulate_averaging(
        lambda x, b: b * x[0], optax.sgd(1e-4), jnp.zeros(2, jnp.float16),
        np.array([[1.0, -1.0]], np.float16), period=1)
    # The rate itself is rounded to float16, as the parameters are.
    np.testing.assert_allclose(result.discrepancy, 2e-4, rtol=2.0**-10)


@pytest.mark.parametrize("num_devices, layout", [(1, "sharded"), (2, "replicated")])
def test_leaves_without_elements(num_devices, layout):
    result = asgd.emulate_averaging(
        lambda p, b: (p["x"] - b) ** 2, optax.sgd(0.1), {"x": 0.0, "none": np.zeros((0, 3))},
        np.ones((4, 2)), period=2, num_devices=num_devices, layout=layout)
    assert result.params["none"].shape == (0, 3) and result.discrepancy.shape == (2,)


def test_workers_keep_statistics_and_optimizers_of_their_own(x64):
    def loss(w, batch):
        return loss_fn(w, batch), {"mean": batch[0].mean(0)}

    result = asgd.emulate_averaging(
        loss, optax.sgd(RATE), START, (X, Y), period=3, num_devices=2,
        model_state={"mean": np.zeros(WIDTH)}, model_state_decay=0.8)
    want = np.zeros((N, WIDTH))
    for t in range(T):
        want = 0.8 * want + 0.2 * X[t].mean(1)
    np.testing.assert_allclose(result.model_state["mean"], want, rtol=0, atol=1e-14)


TREE = {"kernel": jnp.asarray(RNG.normal(size=(WIDTH, 2027)), jnp.float32),
        "bias": jnp.zeros(2027), "head": jnp.asarray(RNG.normal(size=(2027, 3)), jnp.float32),
        "scale": jnp.ones(())}


def tree_loss(p, batch, key):
    hidden = jnp.tanh(batch[0] @ p["kernel"] + p["bias"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return jnp.mean((jnp.where(kept, hidden, 0) @ p["head"] * p["scale"] - batch[1][..., None]) ** 2)


@pytest.mark.parametrize("own_pace", [False, True])
def test_same_bits_on_any_number_of_devices(own_pace):
    batches = np.float32(X), np.float32(Y)
    how = dict(period=3)
    if own_pace:
        batches = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), batches)
        clock = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 1, 4])
        how = dict(schedule=averaging.whenever_ready(N, T * N, 5, clock, merge_time=0.7))

    def run(**options):
        return asgd.emulate_averaging(
            tree_loss, optax.adam(0.01), TREE, batches, worker_tx=optax.clip_by_global_norm(1.0),
            outer_tx=optax.sgd(0.7, 0.9, nesterov=True), **how, **options)

    other = dict(num_devices=2) if own_pace else dict(
        num_devices=4, backend="pmap", waves_per_call=5)
    jax.tree.map(np.testing.assert_array_equal, run(**other), run())


def test_stops_and_goes_on_with_the_same_bits():
    schedule = averaging.cyclic(N, T, 3)
    batches = np.float32(X).reshape(-1, ROWS, WIDTH), np.float32(Y).reshape(-1, ROWS)
    cut = 5 * N + 2

    def make(num_devices):
        return AveragingEmulator(loss_fn, optax.sgd(RATE, 0.9), np.float32(START), schedule, batches,
                                 num_devices=num_devices, cuts=[cut])

    first, second = make(4), make(2)
    whole, _ = first.run(first.init())
    half = first.save(first.run(first.init(), 0, cut)[0])
    rest, _ = second.run(second.load(half), cut)
    np.testing.assert_array_equal(first.worker_params(whole), second.worker_params(rest))
    np.testing.assert_array_equal(first.discrepancy(whole), second.discrepancy(rest))


def test_a_loss_that_is_not_finite_names_event_and_worker():
    broken = np.float32(X), np.float32(Y).copy()
    broken[1][2, 1] = np.nan
    with pytest.raises(asgd.NonFiniteLossError, match=r"event 9 \(worker 1") as error:
        emulate(3, batches=broken)
    assert error.value.worker == 1


@pytest.mark.parametrize("options, words", [
    (dict(period=0), "period must be an integer, 1 or more, got 0"),
    (dict(period=None), "period or schedule"),
    (dict(period=2, delay=3), "delay must be 0 to period=2, got 3"),
    (dict(period=2, elasticity="a"), "elasticity must be from 0 to 1, got 'a'"),
    (dict(period=2, elasticity=0.1, delay=1), "delay and elasticity do not fit"),
    (dict(period=2, backend="debug"), "backend must be shard_map, pmap or jit, got 'debug'"),
    (dict(period=None, schedule=3), "schedule must be an AveragingSchedule"),
    (dict(period=2, batches=lambda events: X), "with schedule, not with period"),
    (dict(period=2, elasticity=1.5), "elasticity must be from 0 to 1, got 1.5"),
    (dict(period=2, tx=0.1), "tx must be an Optax transformation, got 0.1"),
    (dict(period=2, outer_tx=0.1), "outer_tx must be an Optax transformation, got 0.1"),
    (dict(period=2, batches=X[0, 0, 0]), r"leading axes \[steps, workers\]"),
    (dict(period=2, batches=(X, Y[:3])), r"leading axes \[steps, workers\]"),
    (dict(period=2, tx=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))), "elementwise"),
    (dict(period=2, outer_tx=optax.lamb(0.1)), "elementwise"),
    (dict(period=None, schedule=averaging.cyclic(N, T, 2), elasticity=0.1), "takes=False"),
    (dict(period=None, schedule=averaging.cyclic(N, T, 2), delay=1), "delay is part"),
])
def test_bad_input_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        emulate(**options)

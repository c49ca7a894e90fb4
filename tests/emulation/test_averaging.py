"""Local steps and averaging against independent NumPy loops and the oracles of paper D."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import averaging, timing
from asgd.emulation import AveragingEmulator

N, T, ROWS, WIDTH = 4, 14, 3, 5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(T, N, ROWS, WIDTH)), RNG.normal(size=(T, N, ROWS))
START = RNG.normal(size=WIDTH)
RATE = 0.1


def loss_fn(w, batch):
    return jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2) / 2


def gradient(worker, step, w):
    out = np.tanh(X[step, worker] @ w)
    return X[step, worker].T @ ((out - Y[step, worker]) * (1 - out ** 2)) / ROWS


def emulate(period, tx=None, batches=(X, Y), **options):
    return asgd.emulate_averaging(loss_fn, tx or optax.sgd(RATE), START, batches, period=period,
                                  **options)


def late_rate(step):
    return 0.2 / (1.0 + step)


@pytest.mark.parametrize("rate", [lambda step: RATE, late_rate], ids=["constant", "decreasing"])
@pytest.mark.parametrize("period, num_devices", [(1, 1), (2, 4), (3, 1), (7, 1), (20, 1)])
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


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("elasticity", [None, 0.3])
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


@pytest.mark.parametrize("period", [1, 2, 5, 14])
def test_one_worker_is_sequential_sgd(x64, period):
    """D.5; with momentum too, as its own optimizer is."""
    tx, params = optax.sgd(RATE, 0.9), START
    state = tx.init(jnp.asarray(START))
    for step in range(T):
        updates, state = tx.update(gradient(0, step, np.asarray(params)), state)
        params = params + np.asarray(updates)
    result = emulate(period, tx, batches=(X[:, :1], Y[:, :1]))
    np.testing.assert_allclose(result.worker_params[0], params, rtol=0, atol=1e-13)
    if T % period == 0:
        np.testing.assert_allclose(result.params, params, rtol=0, atol=1e-13)


@pytest.mark.parametrize("period", [1, 2, 5])
def test_with_a_common_hessian_the_average_is_synchronous_sgd(x64, period):
    """D.5: f = x'Ax/2 - b'x with one A."""
    root = RNG.normal(size=(WIDTH, WIDTH))
    hessian = root @ root.T / WIDTH
    b = RNG.normal(size=(T, N, WIDTH))
    result = asgd.emulate_averaging(
        lambda x, b: x @ hessian @ x / 2 - b @ x, optax.sgd(RATE), START, b, period=period)
    x = START
    for step in range(T):
        x = x - RATE * (hessian @ x - b[step].mean(0))
    np.testing.assert_allclose(result.worker_params.mean(0), x, rtol=0, atol=1e-13)
    assert np.abs(result.worker_params - x).max() > 1e-2


def test_merges_leave_the_mean_alone_and_the_server_gets_the_mean_before(x64):
    """Lemmas 3.1 and 3.2: with and without the actions at the end."""
    whole = averaging.cyclic(N, 12, 3)
    kept = whole.after < 12 * N
    cut = dataclasses.replace(whole, after=whole.after[kept], action=whole.action[kept],
                              member=whole.member[kept], time=whole.time[kept])
    batches = X[:12].reshape(-1, ROWS, WIDTH), Y[:12].reshape(-1, ROWS)
    after, before = (emulate(None, schedule=schedule, batches=batches) for schedule in (whole, cut))
    assert np.abs(after.worker_params - before.worker_params).max() > 1e-3
    np.testing.assert_allclose(after.worker_params.mean(0), before.worker_params.mean(0), atol=1e-14)
    np.testing.assert_allclose(after.params, before.worker_params.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("period", [1, 4])
def test_identical_data_keep_identical_workers(x64, period):
    same = np.repeat(X[:, :1], N, 1), np.repeat(Y[:, :1], N, 1)
    result = emulate(period, batches=same)
    alone = emulate(period, batches=(X[:, :1], Y[:, :1]))
    np.testing.assert_allclose(result.worker_params, np.repeat(alone.worker_params, N, 0), atol=1e-14)
    assert (result.discrepancy == 0).all()


def test_workers_are_no_further_apart_than_two_periods(x64):
    """Lemma 3.3: at most 2 period L rate, with gradients of length up to L = 1."""
    directions = RNG.normal(size=(64, 16, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions[:, 0], directions[:, 1] = [1, 0, 0], [-1, 0, 0]
    for period in (1, 2, 8):
        result = asgd.emulate_averaging(lambda x, d: d @ x, optax.sgd(RATE), np.zeros(3), directions,
                                        period=period)
        bound = 2 * period * RATE
        # Two opposite workers drift apart by 2 rates a step, and a merge of both keeps one period.
        np.testing.assert_allclose(result.discrepancy, bound, rtol=1e-12)


def schedules_of_own_pace():
    clock = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 1, 4])
    for max_drift, merge_time in ((1, 0.0), (4, 0.0), (4, 1.5), (9, 6.0)):
        yield averaging.whenever_ready(N, T * N, max_drift, clock, merge_time=merge_time)
    yield averaging.independent(N, T * N, [3, 2, 4, 1], clock, merge_time=0.7)


@pytest.mark.parametrize("schedule", list(schedules_of_own_pace()), ids=range(5))
def test_no_gain_is_lost_or_doubled(x64, schedule):
    """With constant gradients the server has what was released, workers that and their own."""
    c = RNG.normal(size=(N, 3))
    result = asgd.emulate_averaging(lambda x, b: b @ x, optax.sgd(1.0), np.zeros(3),
                                    c[schedule.worker], schedule=schedule, num_devices=2)
    copy, steps, released = np.zeros((N, 3)), np.zeros(N), np.zeros(N)
    server, sum_, members = np.zeros(3), np.zeros(3), 0
    actions = list(zip(schedule.after, schedule.action, schedule.member))
    for event in range(len(schedule) + 1):
        while actions and actions[0][0] == event:
            _, action, w = actions.pop(0)
            if action == averaging.RELEASE:
                sum_ = sum_ - (steps[w] - released[w]) * c[w]
                released[w], members = steps[w], members + 1
            elif action == averaging.MERGE:
                server, sum_, members = server + sum_ / members, 0, 0
            elif action == averaging.TAKE:
                copy[w] = server + 0
        if event < len(schedule):
            steps[schedule.worker[event]] += 1
    holds = np.array([np.flatnonzero((schedule.action == averaging.TAKE) & (
        schedule.member == w))[-1] for w in range(N)])
    since = [np.flatnonzero((schedule.action == averaging.RELEASE) & (
        schedule.member == w) & (np.arange(len(schedule.action)) < holds[w]))[-1] for w in range(N)]
    own = [np.count_nonzero(schedule.worker[schedule.after[since[w]]:] == w) for w in range(N)]
    np.testing.assert_allclose(result.params, server, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        result.worker_params, copy - np.array(own)[:, None] * c, rtol=0, atol=1e-12)
    assert (schedule.drift[[np.flatnonzero(schedule.worker == w)[-1] for w in range(N)]] >= 1).all()


def test_the_servers_optimizer_steps_along_the_mean_update(x64):
    """O-14: four equal gradients through Nesterov momentum."""
    beta, rate, g = 0.9, 0.3, np.array([0.5, -1.0])
    schedule = averaging.independent(1, 4, 1, timing.constant(1.0))
    result = asgd.emulate_averaging(
        lambda x, b: g @ x, optax.sgd(1.0), np.zeros(2), np.zeros(4), schedule=schedule,
        outer_tx=optax.sgd(rate, beta, nesterov=True))
    total = 4 + 4 * beta + 3 * beta**2 + 2 * beta**3 + beta**4
    np.testing.assert_allclose(result.params, -rate * total * g, rtol=0, atol=1e-14)


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

    want = run()
    for other in [dict(num_devices=8), dict(num_devices=2)] + (not own_pace) * [
            dict(num_devices=4, backend="pmap", waves_per_call=5)]:
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(run(**other)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(other))


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

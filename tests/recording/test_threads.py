"""Real runs of threads: what is written down is what happened, and it replays to the same bits."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.recording import Log, Recorder
from asgd.recording.recorder import signature

COLUMNS = ("worker", "read_version", "version", "applied", "updates", "start_time", "finish_time", "batch")


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def mlp(params, batch, key):
    # The key matters too, as that of dropout does.
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def problem(total, seed=0):
    rng = np.random.default_rng(seed)
    params = {"in": rng.normal(size=(5, 7)).astype(np.float32), "bias": np.zeros(7, np.float32),
              "out": rng.normal(size=7).astype(np.float32)}
    batches = {"x": rng.normal(size=(total, 4, 5)).astype(np.float32),
               "y": rng.normal(size=(total, 4)).astype(np.float32)}
    return params, batches


def check_trace(trace, count):
    """Every worker read the newest version there was, and batches were given out in order."""
    assert len(trace) == count and (np.diff(trace.finish_time) >= 0).all()
    made = trace.finish_time[trace.updates]
    np.testing.assert_array_equal(np.searchsorted(made, trace.start_time, side="right"), trace.read_version)
    # Of those that were given out, at most one for each worker has not arrived.
    numbers = np.unique(trace.batch)
    assert len(numbers) == count and numbers.max() < count + trace.num_workers
    assert (np.diff(trace.batch[np.argsort(trace.start_time, kind="stable")]) > 0).all()


def check_replay(loss, tx, params, batches, real, **options):
    replay = asgd.emulate(loss, tx, params, real.trace, batches, **options)
    assert bits(replay.params) == bits(real.params)
    assert bits(replay.model_state) == bits(real.model_state)
    np.testing.assert_array_equal(replay.losses, real.losses)


def damped_by_delay_and_worker():
    def update_fn(updates, state, params=None, *, delay, worker, **extra_args):
        return jax.tree.map(lambda g: g / (1 + 100 * delay + worker), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def test_ten_recordings_differ_and_each_replays_to_its_own_bits():
    params, batches = problem(70)

    def rows(numbers):
        return {name: x[numbers] for name, x in batches.items()}

    # Everything that the server is told has its part.
    tx = optax.chain(damped_by_delay_and_worker(), asgd.dc_asgd_a(0.005, momentum=0.9, num_workers=4))
    orders, ends = set(), set()
    for number in range(10):
        real = asgd.record(mlp, tx, params, rows, num_workers=4, num_gradients=60, num_devices=4)
        trace = real.trace
        assert trace.num_workers == 4 and trace.staleness.max() > 0
        check_trace(trace, 60)
        orders.add(trace.worker.tobytes() + trace.batch.tobytes())
        ends.add(b"".join(bits(real.params)))
        check_replay(mlp, tx, params, rows, real, num_devices=(1, 2, 4)[number % 3])
    assert len(orders) > 1 and len(ends) > 1
    for devices in (1, 2, 4):
        check_replay(mlp, tx, params, rows, real, num_devices=devices)


def test_convolutions_batch_norm_and_what_workers_do():
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
              "second": rng.normal(size=(3, 3, 4, 6)).astype(np.float32),
              "scale": np.ones(4, np.float32), "out": rng.normal(size=(6, 3)).astype(np.float32)}
    batches = {"image": rng.normal(size=(40, 4, 8, 8, 2)).astype(np.float32),
               "label": rng.integers(3, size=(40, 4))}

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def cnn(params, batch):
        x = conv(batch["image"], params["first"])
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5) * params["scale"])
        logits = jax.nn.relu(conv(x, params["second"])).mean((1, 2)) @ params["out"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, {"mean": mean, "variance": variance}

    start = {"mean": np.zeros(4, np.float32), "variance": np.ones(4, np.float32)}
    # Momentum on the worker's side is a state that travels with it.
    worker_tx = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.5))
    tx = asgd.staleness_aware_sgd(0.1)
    real = asgd.record(cnn, tx, params, batches, num_workers=3, num_gradients=40, num_devices=3,
                       worker_tx=worker_tx, model_state=start)
    assert real.trace.staleness.max() > 0
    assert bits(real.model_state) != bits(start)
    for devices in (1, 4):
        check_replay(cnn, tx, params, batches, real, num_devices=devices, worker_tx=worker_tx,
                     model_state=start)


@pytest.mark.parametrize("protocol, size", [(protocols.softsync(2), 2), (protocols.k_batch_async(3), 3)])
def test_updates_come_after_c_gradients(protocol, size):
    params, batches = problem(23)
    tx = asgd.staleness_aware_sgd(0.01, momentum=0.5)
    real = asgd.record(mlp, tx, params, batches, num_workers=4, num_gradients=23, num_devices=2,
                       protocol=protocol)
    events = np.arange(23)
    np.testing.assert_array_equal(real.trace.version, events // size)
    np.testing.assert_array_equal(real.trace.updates, (events + 1) % size == 0)
    assert real.trace.metadata["protocol"] == protocol.describe()
    check_replay(mlp, tx, params, batches, real, num_devices=2)


def test_one_worker_is_sequential_sgd():
    params, batches = problem(30)
    real = asgd.record(mlp, optax.sgd(0.01), params, batches, num_workers=1, num_gradients=30)
    assert real.trace.staleness.tolist() == [0] * 30 and real.trace.batch.tolist() == list(range(30))
    expected = asgd.emulate(mlp, optax.sgd(0.01), params,
                            asgd.Trace(np.zeros(30, int), np.arange(30)), batches)
    assert bits(real.params) == bits(expected.params)


def test_other_optimizers_replay_what_was_recorded():
    params, batches = problem(30)
    real = asgd.record(mlp, optax.sgd(0.01), params, batches, num_workers=3, num_gradients=30)
    others = [asgd.emulate(mlp, tx, params, real.trace, batches).losses
              for tx in (optax.sgd(0.01), asgd.staleness_aware_sgd(0.01), asgd.dc_asgd_a(0.01, num_workers=3))]
    np.testing.assert_array_equal(others[0], real.losses)
    assert (others[1] != others[0]).any() and (others[2] != others[0]).any()


def test_what_happens_is_what_is_written():
    # f = b x^2 / 2 with the rate 1/2: x <- x - b x_read / 2. Batch 0 is held back until the other worker
    # has pushed 1, 2 and 3; that one then waits for the slow one to come back.
    pushed, back, slow_thread = threading.Event(), threading.Event(), []

    def batches(numbers):
        name = threading.current_thread().name
        if name.startswith("worker"):
            if numbers[0] == 0:
                slow_thread.append(name)
                assert pushed.wait(timeout=60)
            elif name in slow_thread:
                back.set()
            elif numbers[0] == 4:
                pushed.set()
                assert back.wait(timeout=60)
        return 1.0 + np.asarray(numbers, np.float32)

    log = Log(protocols.asynchronous(), 2, 7)
    run = Recorder(lambda x, b: 0.5 * b * x**2, optax.sgd(0.5), jnp.float32(1.0), batches, log)
    state, losses = run.run(run.init())
    run.close()
    trace = log.trace()
    x, versions, expected = np.float32(1), [np.float32(1)], []
    for batch, read in zip(trace.batch, trace.read_version):
        b = np.float32(1 + batch)
        expected.append(0.5 * b * versions[read] ** 2)
        x = x - np.float32(0.5) * b * versions[read]
        versions.append(x)
    assert trace.batch[:4].tolist() == [1, 2, 3, 0] and trace.staleness[:4].tolist() == [0, 0, 0, 3]
    slow = int(slow_thread[0].split()[1])
    assert trace.worker[:4].tolist() == [1 - slow] * 3 + [slow]
    assert run.params(state) == x
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_times_contain_the_sleeps_and_follow_each_other():
    params, batches = problem(24)
    sleep = timing.Timing(timing.constant(0.01), slowdown=[1.0, 1.0, 6.0])
    trace = asgd.record(mlp, optax.sgd(0.01), params, batches, num_workers=3, num_gradients=24,
                        num_devices=2, sleep=sleep).trace
    least = np.array([0.01, 0.01, 0.06])[trace.worker]
    assert (trace.delay >= least).all()
    assert (np.diff(trace.finish_time) >= 0).all()
    for worker in range(3):
        rows = trace.worker == worker
        assert (trace.start_time[rows][1:] >= trace.finish_time[rows][:-1]).all()
        # In the same exchange as the push: nobody else's update comes between.
        np.testing.assert_array_equal(trace.read_version[rows][1:], trace.version[rows][:-1] + 1)
    assert trace.metadata["recording"]["sleep"] == sleep.describe()
    assert trace.metadata["recording"]["recorder"] == "threads"


def test_goes_on_from_what_was_saved():
    params, batches = problem(60)
    tx = asgd.dc_asgd_a(0.005, momentum=0.5, num_workers=3)

    def recorder(**options):
        return Recorder(mlp, tx, params, lambda n: {name: x[n] for name, x in batches.items()},
                        Log(protocols.asynchronous(), 3, 50), worker_tx=optax.trace(0.5), **options)

    first = recorder(stops=(20,))
    state, losses = first.run(first.init(), 0, 20)
    saved = first.save(state)
    first.close()
    second = recorder(layout="replicated")  # Which changes nothing.
    state, rest = second.run(second.load(saved), 20, 50)
    second.close()
    trace = second.log.trace()
    assert trace.head(20) == asgd.Trace(**{
        name: getattr(first.log.trace(20), name) for name in COLUMNS}, num_workers=3, metadata=trace.metadata)
    # What was in flight is lost, and its batches come before new ones.
    assert (trace.start_time[20:] >= trace.finish_time[19]).all() and (trace.read_version[20:] >= 20).all()
    missing = set(range(trace.batch[:20].max())) - set(trace.batch[:20].tolist())
    assert missing <= set(trace.batch[20:].tolist())
    assert len(set(trace.batch.tolist())) == 50 and trace.batch.max() < 53
    real = asgd.RecordingResult(second.params(state), np.concatenate([losses, rest]), None, trace)
    check_replay(mlp, tx, params, batches, real, num_devices=2, worker_tx=optax.trace(0.5))


def test_a_straggler_does_not_hold_up_the_end():
    params, batches = problem(30)
    sleep = timing.Timing(timing.constant(0.001), slowdown=[1.0, 1.0, 60_000.0])
    trace = asgd.record(mlp, optax.sgd(0.01), params, batches, num_workers=3, num_gradients=30,
                        sleep=sleep).trace
    assert set(trace.worker) == {0, 1} and trace.finish_time[-1] < 60
    # The rows of a tree begin anew.
    assert (trace.batch < 30).all()


def test_a_worker_that_fails_ends_the_run():
    def batches(numbers):
        if numbers.max() > 5:
            raise RuntimeError("no more data")
        return np.ones(len(numbers), np.float32)

    with pytest.raises(RuntimeError, match="no more data"):
        asgd.record(lambda x, b: b * x**2, optax.sgd(0.01), jnp.float32(1), batches,
                    num_workers=3, num_gradients=100)
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(asgd.NonFiniteLossError, match=r"event \d+ \(worker [01], staleness \d+\)"):
        asgd.record(lambda x, b: b * x**2, optax.sgd(1e4), jnp.float32(1), np.ones(200, np.float32),
                    num_workers=2, num_gradients=200)


@pytest.mark.parametrize("options, message", [
    ({"num_workers": 0}, "num_workers"),
    ({"num_gradients": 0}, "num_gradients"),
    ({"recorder": "processes"}, "recorder must be one of threads, ray, got 'processes'"),
    ({"protocol": protocols.hardsync()}, "protocol must be asynchronous, softsync or k_batch_async"),
    ({"protocol": protocols.asynchronous(pull="before")}, "pull='after'"),
    ({"protocol": protocols.softsync(5)}, "n of softsync"),
    ({"num_devices": 99}, "num_devices=99, but JAX has 8"),
    ({"num_gradients": 11}, "leading axis of 11"),
    ({"tx": optax.clip_by_global_norm(1.0)}, "elementwise"),
    ({"protocol": protocols.softsync(1)}, "wrap what runs once per update"),
    ({"sleep": 0.1}, "timing must be a Timing or a Distribution"),
])
def test_bad_arguments(options, message):
    arguments = {"num_workers": 2, "num_gradients": 10, "tx": optax.sgd(0.1)} | options
    with pytest.raises((ValueError, TypeError), match=message):
        asgd.record(lambda x, b: (x**2).sum() * b, arguments.pop("tx"), jnp.ones(3),
                    np.ones(10, np.float32), **arguments)


def test_signature_names_what_differs():
    assert signature({"a": jnp.ones((2, 3)), "b": [jnp.int32(1)]}) == {
        "['a']": "float32[2, 3]", "['b'][0]": "int32[]"}

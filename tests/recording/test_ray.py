"""Workers that are Ray actors: their processes die, and the recording goes on."""

import logging
import os
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.recording import Log, Recorder
from asgd.training import loop
from configs import digits

ray = pytest.importorskip("ray")
TX = asgd.dc_asgd_a(0.005, momentum=0.5, num_workers=3)
TOTAL = 5000  # More than there is time for: it ends when the worker is back.


def loss(params, batch, key):
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - batch["y"]) ** 2)


def problem():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(5, 7)).astype(np.float32), "out": rng.normal(size=7).astype(np.float32)}
    rows = {"x": rng.normal(size=(50, 5)).astype(np.float32), "y": rng.normal(size=50).astype(np.float32)}
    return params, asgd.IndexedBatches(rows, lambda n: np.asarray(n)[:, None] * 3 % 47 + np.arange(4) % 3)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def killed():
    """A recording during which one actor's process is killed, and the log lines of that."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("asgd").addHandler(handler)
    params, batches = problem()
    log = Log(protocols.asynchronous(), 3, TOTAL)
    # Slow enough for gradients to be in flight when it dies.
    run = Recorder(loss, TX, params, batches, log, recorder="ray", worker_tx=optax.clip_by_global_norm(5.0),
                   sleep=timing.constant(0.02), stops=range(TOTAL))
    try:
        state, first = run.run(run.init(), 0, 20)
        processes = run.processes()
        os.kill(processes[1][1], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (log.worker[20:log.count] == 1).sum() < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        count = log.count
        state, rest = run.run(state, 20, count)
        again = run.processes()
    finally:
        run.close()
        logging.getLogger("asgd").removeHandler(handler)
    losses = np.concatenate([first, rest])
    return asgd.RecordingResult(run.params(state), losses, None, log.trace(count)), processes, again, lines


def test_a_killed_worker_costs_its_gradient_in_flight(killed):
    real, before, after, lines = killed
    assert len(set(real.trace.batch.tolist())) == len(real.trace)
    assert {host for host, _ in before} == {socket.gethostname()}
    assert len({pid for _, pid in before} | {os.getpid()}) == 4
    # Only the one that was killed is another process now.
    assert [a == b for a, b in zip(before, after)] == [True, False, True]
    lost = [line for line in lines if "is lost" in line]
    assert len(lost) == 1 and lost[0].startswith("Worker 1 died, and its gradient of batch ")
    # The batch that was lost is the next one to be computed, by whom it may.
    number = int(lost[0].split("batch ")[1].split(" ")[0])
    row = real.trace.batch.tolist().index(number)
    assert real.trace.start_time[row] > real.trace.finish_time[19]
    # It came back, and reads what the others have made since.
    assert (real.trace.read_version[real.trace.worker == 1][-3:] > 20).all()


def test_it_replays_to_the_same_bits(killed):
    real = killed[0]
    params, batches = problem()
    assert real.trace.staleness.max() > 0 and real.trace.metadata["recording"]["recorder"] == "ray"
    for devices in (1, 2, 4):
        replay = asgd.emulate(loss, TX, params, real.trace, batches, num_devices=devices,
                              worker_tx=optax.clip_by_global_norm(5.0))
        np.testing.assert_array_equal(replay.losses, real.losses)
        for mine, theirs in zip(jax.tree.leaves(replay.params), jax.tree.leaves(real.params)):
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_a_run_to_its_end(tmp_path):
    config = digits.get_config()
    config.update({"num_gradients": 30, "log_every": 10, "learning_rate": 0.05, "mode": "record",
                   "recorder": "ray"})
    config.model.hidden = (16,)
    config.cluster.num_workers = 2
    config.cluster.slowdown = ()
    result = loop.train(config, tmp_path / "real")
    config.mode, config.trace_path = "emulate", str(tmp_path / "real/trace.npz")
    replay = loop.train(config, tmp_path / "replay")
    assert replay["params_digest"] == result["params_digest"]
    assert (tmp_path / "real/metrics.jsonl").read_text() == (tmp_path / "replay/metrics.jsonl").read_text()

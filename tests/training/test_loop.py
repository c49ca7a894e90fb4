"""The training program in one process: what it writes, replays, resumes and refuses."""

import json
import math

from configs import default
import flax.linen as nn
import numpy as np
import pytest

import asgd
from asgd.cluster import Trace, protocols, timing
from asgd.training import build, loop, validation
from asgd.workloads import models, resnet


@pytest.fixture
def config():
    config = default.get_config()
    config.num_gradients = 120
    config.model.hidden = (16,)
    config.learning_rate = 0.5
    config.cluster.num_workers = 4
    config.cluster.slowdown = (1.0, 1.0, 2.0, 3.0)
    config.log_every = 25
    config.evaluate_every_epochs = 0.5
    return config


def test_outputs(config, tmp_path, read_metrics):
    result = loop.train(config, tmp_path)
    trace = Trace.load(tmp_path / "trace.npz")
    clock = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1.0, 1.0, 2.0, 3.0])
    assert trace == asgd.simulate(protocols.asynchronous(), clock, 4, 120, 0)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(config.to_json())
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert result["gradients"] == result["updates"] == 120
    assert result["virtual_time"] == trace.finish_time[-1]
    assert result["workdir"] == str(tmp_path)
    assert len(result["params_digest"]) == 64
    assert result["gradients_per_second"] > 0

    lines = read_metrics(tmp_path)
    # Logged every 25 events; half an epoch is 1437 / 16 / 2 = 44.9 events, so 45 and 90.
    assert [line["step"] for line in lines] == [25, 45, 50, 75, 90, 100, 120]
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [45, 90, 120]
    start = 0
    for line in lines:
        stop = line["step"]
        assert line["updates"] == stop
        assert line["virtual_time"] == trace.finish_time[stop - 1]
        assert line["epoch"] == stop * 16 / 1437
        assert line["staleness_mean"] == pytest.approx(trace.staleness[start:stop].mean())
        start = stop
    assert lines[-1]["eval_loss"] == result["eval_loss"]
    assert lines[-1]["eval_accuracy"] == result["eval_accuracy"] > 0.8


@pytest.mark.parametrize("options", [
    {"num_devices": 2, "backend": "pmap"}, {"backend": "jit"},
    {"num_devices": 4, "layout": "replicated", "waves_per_call": 7}])
def test_same_bits_however_executed(config, tmp_path, options):
    expected = loop.train(config, tmp_path / "a")["params_digest"]
    config.emulation.update(options)
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_replays_a_trace(config, tmp_path, suffix):
    expected = loop.train(config, tmp_path / "a")["params_digest"]
    path = tmp_path / "a/trace.npz"
    if suffix == "csv":
        trace = Trace.load(path)
        path = tmp_path / "log.csv"
        rows = zip(trace.worker, trace.read_version)
        path.write_text("worker,read_version\n" + "".join(f"{w},{v}\n" for w, v in rows))
    config.trace_path = str(path)
    config.cluster.num_workers = 1  # A replayed trace brings its own workers.
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected


def test_resumes_with_the_same_bits(config, tmp_path, interrupted):
    config.algorithm = "dc_asgd_a"
    config.momentum = 0.9
    config.learning_rate = 0.05
    config.cluster.softsync_n = 2
    config.checkpoint.every_gradients = 40
    expected = loop.train(config, tmp_path / "a")
    config.emulation.num_devices = 4
    assert interrupted(config, tmp_path / "b") == [40, 80]
    config.emulation.num_devices = 2
    result = loop.train(config, tmp_path / "b")
    assert result["params_digest"] == expected["params_digest"]
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    # And a third time there is nothing left to do.
    again = loop.train(config, tmp_path / "b")
    assert again == result


def test_another_config_is_refused_in_the_same_workdir(config, tmp_path):
    loop.train(config, tmp_path)
    config.learning_rate = 0.2
    config.emulation.num_devices = 2
    with pytest.raises(validation.ConfigError, match=r"learning_rate=0.5, now 0.2"):
        loop.train(config, tmp_path)


class _OneBlock(nn.Module):
    """The smallest ResNet."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = resnet._BasicBlock(4, 2)(x, train)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def test_batch_norm_model_trains(config, tmp_path, monkeypatch):
    monkeypatch.setitem(models._MODELS, "resnet20", _OneBlock)
    config.model.name = "resnet20"
    config.num_gradients = 6
    config.evaluate_every_epochs = 10.0
    config.batch_size = 2
    expected = loop.train(config, tmp_path / "a")
    config.emulation.num_devices = 2
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected["params_digest"]
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_one_worker_is_sequential_sgd_for_every_algorithm(config, tmp_path):
    config.cluster.num_workers = 1
    config.cluster.slowdown = ()
    config.num_gradients = 30
    digests = set()
    for algorithm in validation.ALGORITHMS:
        config.algorithm = algorithm
        digests.add(loop.train(config, tmp_path / algorithm)["params_digest"])
    assert len(digests) == 1


def test_schedule_counts_updates():
    trace = asgd.simulate(protocols.softsync(4), timing.exponential(1.0), 12, 100, 0)
    # 3 gradients of 5 samples an update, 50 samples an epoch: 10 events an epoch.
    for epochs, event in ((0.0, 0), (1.0, 10), (2.5, 25), (7.0, 70)):
        updates = build.updates_at(trace, epochs, num_examples=50, batch_size=5)
        # The first update that has a gradient of the new epoch in it.
        assert updates == event // 3, (epochs, event)
    assert build.updates_at(trace, 30.0, 50, 5) == round(300 * 33 / 100)


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [1, 1, 1, 1, 1]), ("step", [1, 1, 0.5, 0.5, 0.25]),
    ("cosine", [0.5 * (1 + math.cos(math.pi * k / 40)) for k in (0, 5, 10, 19, 35)])])
def test_schedules(config, schedule, expected):
    config.schedule = schedule
    config.schedule_epochs = (1.0, 3.0)
    config.schedule_factor = 0.5
    config.learning_rate = 2.0
    trace = asgd.simulate(protocols.asynchronous(), timing.exponential(1.0), 3, 40, 0)

    def updates(epochs):  # 10 gradients an epoch.
        return build.updates_at(trace, epochs, 10 * config.batch_size, config.batch_size)

    rate = build.make_schedule(config, updates, trace.num_updates)
    rates = [float(rate(k)) if callable(rate) else rate for k in (0, 5, 10, 19, 35)]
    # Cosine and product round to float32, each value at most 2.
    np.testing.assert_allclose(rates, 2.0 * np.asarray(expected), rtol=0, atol=5e-7)
    config.warmup_epochs = 2.0
    rate = build.make_schedule(config, updates, trace.num_updates)
    warm = np.minimum(1, (np.asarray([0, 5, 10, 19, 35]) + 1) / 20)
    np.testing.assert_allclose([float(rate(k)) for k in (0, 5, 10, 19, 35)],
                               2.0 * np.asarray(expected) * warm, rtol=0, atol=5e-7)

"""Runs of local steps and averaging: what they write, replay, resume and refuse."""

from configs import default
import jax
import numpy as np
import optax
import pytest

from asgd.cluster import averaging, timing
from asgd.cluster.averaging import AveragingSchedule
from asgd.training import build, build_averaging, loop, validation
from asgd.training.validation import ConfigError


@pytest.fixture
def config():
    config = default.get_config()
    config.algorithm = "delayed_averaging"
    config.num_gradients = 120
    config.model.hidden = (16,)
    config.learning_rate = 0.5
    config.cluster.num_workers = 6
    config.cluster.slowdown = (1.0, 1.0, 4.0)
    config.averaging.period = 4
    config.averaging.merge_time = 2.0
    config.log_every = 25
    config.evaluate_every_epochs = 0.5
    return config


CLOCK = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1.0, 1.0, 4.0] * 2)


def test_outputs(config, tmp_path, read_metrics):
    config.averaging.schedule = "whenever_ready"
    config.averaging.max_drift = 9
    result = loop.train(config, tmp_path)
    schedule = AveragingSchedule.load(tmp_path / "schedule.npz")
    assert schedule == averaging.whenever_ready(6, 120, 9, CLOCK, merge_time=2.0)
    assert result["gradients"] == 120 and result["updates"] == schedule.num_merges > 3
    merged = schedule.time[schedule.action == averaging.MERGE]
    assert result["virtual_time"] == max(schedule.finish_time.max(), merged.max())
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [25, 45, 50, 75, 90, 100, 120]
    start = 0
    for line in lines:
        stop = line["step"]
        assert line["epoch"] == stop * 16 / 1437
        assert line["updates"] == np.count_nonzero(
            (schedule.action == averaging.MERGE) & (schedule.after <= stop))
        assert line["staleness_mean"] == pytest.approx(schedule.drift[start:stop].mean())
        assert line["drift_max"] == schedule.drift[start:stop].max()
        # Idle is what a worker does not compute, up to its last gradient.
        for worker, idle in enumerate(line["idle_time_workers"]):
            mine = schedule.worker[:stop] == worker
            busy = (schedule.finish_time - schedule.start_time)[:stop][mine].sum()
            last = schedule.finish_time[:stop][mine].max(initial=0)
            assert idle == pytest.approx(last - busy, abs=1e-9)
        assert line["virtual_time"] == max(
            schedule.finish_time[:stop].max(), merged[:line["updates"]].max(initial=0))
        start = stop
    assert 0 < result["idle_fraction"] < 0.5
    assert result["eval_accuracy"] > 0.6 and result["eval_accuracy_average"] > 0.6


def test_evaluates_the_servers_copy_and_the_average(config):
    run = build.build(config)
    params, _ = run.task.init(config.seed)
    emulator = run.emulator(params, None, config, [])
    state, _ = emulator.run(emulator.init())
    metrics = run.evaluate(emulator, state)
    workers = emulator.worker_params(state)
    mean = jax.tree.map(lambda x: x.mean(0), workers)
    for tree, suffix in ((emulator.params(state), ""), (mean, "_average")):
        assert metrics["eval_loss" + suffix] == pytest.approx(
            run.task.evaluate(tree)["eval_loss"], rel=1e-5)
    assert metrics["discrepancy"] == emulator.discrepancy(state)[-1] > 0


@pytest.mark.parametrize("algorithm, schedule", [
    ("local_sgd", averaging.cyclic(6, 20, 4, delay=0, timing=CLOCK, merge_time=2.0).head(116)),
    ("delayed_averaging", averaging.cyclic(6, 20, 4, timing=CLOCK, merge_time=2.0).head(116)),
    ("async_diloco", averaging.independent(6, 116, [4, 4, 1] * 2, CLOCK, merge_time=2.0)),
    ("elastic_averaging", averaging.independent(6, 116, 4, CLOCK, merge_time=2.0, takes=False)),
])
def test_every_algorithm_learns_by_its_schedule_and_replays_it(config, tmp_path, algorithm, schedule):
    config.algorithm = algorithm
    config.num_gradients = 116  # The last step is not whole.
    result = loop.train(config, tmp_path / "a")
    assert result["gradients"] == 116
    assert AveragingSchedule.load(tmp_path / "a/schedule.npz") == schedule
    assert max(result["eval_accuracy"], result["eval_accuracy_average"]) > 0.6
    config.trace_path = str(tmp_path / "a/schedule.npz")
    again = loop.train(config, tmp_path / "b")
    for name in ("params_digest", "eval_loss_average", "gradients", "virtual_time"):
        assert again[name] == result[name]


@pytest.mark.parametrize("algorithm", ["local_sgd", "async_diloco"])
def test_a_run_too_short_for_a_merge(config, tmp_path, algorithm):
    config.algorithm = algorithm
    config.num_gradients = 5
    result = loop.train(config, tmp_path / "a")
    assert result["gradients"] == 5 and "discrepancy" not in result
    config.trace_path = str(tmp_path / "a/schedule.npz")
    assert loop.train(config, tmp_path / "b")["params_digest"] == result["params_digest"]


def test_same_bits_on_several_devices_and_replayed(config, tmp_path):
    expected = loop.train(config, tmp_path / "a")["params_digest"]
    config.emulation.num_devices = 4
    config.trace_path = str(tmp_path / "a/schedule.npz")
    config.cluster.num_workers = 2  # A replayed schedule brings its own workers.
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_linear_scaling_and_its_warm_up(config):
    """D.3: the rate times n, reached linearly from the rate itself."""
    config.averaging.linear_scaling = True
    config.learning_rate = 0.01
    config.warmup_epochs = 4 * 6 * 16 / 1437  # Four local steps.
    schedule = build_averaging.make_schedule(config, 1437)
    tx, _ = build_averaging.make_txs(config, schedule, 1437)
    state, rates = tx.init(np.zeros(1, np.float32)), []
    for number in range(0, 36, 3):  # Whoever computes them: six gradients are a step.
        updates, state = tx.update(np.ones(1, np.float32), state, number=number)
        rates.append(-float(updates[0]))
    want = [0.01 + 0.05 * part for part in (1 / 4, 2 / 4, 3 / 4, 1, 1, 1)]
    np.testing.assert_allclose(rates, np.repeat(want, 2), rtol=1e-6)


def test_slow_workers_take_fewer_steps():
    assert build_averaging.proportional_steps(10, np.array([1, 2, 3, 20])) == [10, 5, 3, 1]


def test_the_outer_optimizers(config):
    config.averaging.outer_learning_rate, config.averaging.outer_momentum = 0.7, 0.9
    config.averaging.spread = 0.6
    for algorithm, expected in (
            ("local_sgd", optax.sgd(0.7, 0.9, nesterov=True)),
            ("async_diloco", build_averaging.transforms.delayed_nesterov(
                0.7, 0.9, every=6, spread=0.1))):
        config.algorithm = algorithm
        _, outer = build_averaging.make_txs(
            config, build_averaging.make_schedule(config, 1437), 1437)
        states = [tx.init(np.zeros(1, np.float32)) for tx in (outer, expected)]
        for k in range(8):
            steps = []
            for n, tx in enumerate((outer, expected)):
                step, states[n] = tx.update(np.full(1, k + 1.0, np.float32), states[n])
                steps.append(float(step[0]))
            assert steps[0] == steps[1]


@pytest.mark.parametrize("changes, words", [
    ({"averaging.period": 0}, "averaging.period must be an integer from 1"),
    ({"averaging.delay": 5}, "averaging.delay must be an integer from 0 to 4, got 5"),
    ({"averaging.delay": 2, "averaging.schedule": "whenever_ready"}, "it is for delayed_averaging in"),
    ({"averaging.schedule": "star"}, "averaging.schedule must be one of cyclic, whenever_ready"),
    ({"averaging.merge_time": -1.0}, "averaging.merge_time must be a number at least 0"),
    ({"averaging.elasticity": 2.0}, "averaging.elasticity must be a number at least 0 and at most 1"),
    ({"cluster.pull_time": 1.0}, "communication takes averaging.merge_time"),
    ({"cluster.protocol": "softsync"}, "its protocol is under averaging"),
    ({"cluster.slowdown": (1.0,) * 7}, "cluster.slowdown has 7 factors"),
    ({"emulation.backend": "debug"}, "emulation.backend='debug' and algorithm='delayed_averaging'"),
    ({"trace_path": "no.npz"}, "trace_path: .*no.npz"),
])
def test_bad_configs_are_refused(config, tmp_path, changes, words):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=words):
        loop.train(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_schedule_of_another_algorithm_or_length_is_refused(config, tmp_path):
    averaging.cyclic(2, 4, 2, delay=0, takes=False).save(tmp_path / "elastic.npz")
    config.trace_path = str(tmp_path / "elastic.npz")
    with pytest.raises(ConfigError, match="is cyclic, kept, and this algorithm takes cyclic or "):
        build.build(config)
    config.algorithm = "elastic_averaging"
    with pytest.raises(ConfigError, match="num_gradients=120, but the schedule .* has 8"):
        build.build(config)
    config.num_gradients = 6
    assert build.build(config).num_events == 6


def test_every_algorithm_is_known_once():
    names = [*validation.ALGORITHMS, *validation.GOSSIP_ALGORITHMS, *validation.AVERAGING_ALGORITHMS]
    assert len(set(names)) == len(names)


def test_text(config, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"to be, or not to be: that is the question.\n" * 40)
    config.update_from_flattened_dict({
        "dataset.name": "text", "dataset.path": str(tmp_path / "text.txt"), "dataset.length": 16,
        "model.name": "transformer", "model.width": 16, "model.layers": 1, "model.heads": 2,
        "batch_size": 8, "num_gradients": 60, "momentum": 0.9, "evaluate_every_epochs": 10.0,
        "algorithm": "asgd", "cluster.num_workers": 1, "cluster.slowdown": ()})
    result = loop.train(config, tmp_path / "a")
    assert result["eval_loss"] < np.log(256) / 2
    config.dataset.path = ""
    with pytest.raises(ConfigError, match="dataset.path must name a file"):
        loop.train(config, tmp_path / "b")
    config.dataset.path = str(tmp_path / "text.txt")
    config.algorithm, config.gossip.split = "dsgd", "label"
    with pytest.raises(ConfigError, match="gossip.split='label' and dataset.name='text' do not fit"):
        loop.train(config, tmp_path / "b")
    config.model.name = "mlp"
    with pytest.raises(ConfigError, match="the transformer is for text"):
        loop.train(config, tmp_path / "b")

"""Decentralised runs of the training program: what they write, replay, resume and refuse."""


from configs import cifar10_gossip, default, digits_gossip
import jax
import numpy as np
import pytest

from asgd.cluster import graphs, schedules
from asgd.cluster.schedules import GossipSchedule
from asgd.emulation import decentralized
from asgd.training import build, loop, validation
from asgd.training.validation import ConfigError


@pytest.fixture
def config():
    config = default.get_config()
    config.algorithm = "pc_asgd_pv"
    config.num_gradients = 120
    config.model.hidden = (16,)
    config.learning_rate = 0.5
    config.momentum = 0.5
    config.gossip.num_agents = 6
    config.gossip.delay = 3
    config.log_every = 25
    config.evaluate_every_epochs = 0.5
    return config


def test_outputs(config, tmp_path, read_metrics):
    result = loop.train(config, tmp_path)
    schedule = GossipSchedule.load(tmp_path / "schedule.npz")
    assert schedule == schedules.constant(graphs.two_cliques(6, bridge_delay=3))
    assert result["gradients"] == 120 and result["updates"] == result["virtual_time"] == 20
    assert not any(isinstance(value, list) for value in result.values())
    lines = read_metrics(tmp_path)
    # Logged every 25 events, evaluated every 44.9, after the round in which that is.
    assert [line["step"] for line in lines] == [30, 48, 54, 78, 90, 102, 120]
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [48, 90, 120]
    for line in lines:
        assert line["updates"] == line["step"] // 6
        assert line["epoch"] == line["step"] * 16 / 1437
    # Of 14 directions between neighbours 2 are late: by 0, 1, 2, 3, 3 rounds at first.
    assert lines[0]["staleness_mean"] == pytest.approx((0 + 1 + 2 + 3 + 3) * 2 / (5 * 14))
    assert lines[-1]["staleness_mean"] == pytest.approx(3 * 2 / 14)
    last = lines[-1]
    assert len(last["eval_accuracy_agents"]) == len(last["eval_loss_agents"]) == 6
    assert last["eval_accuracy_worst"] == min(last["eval_accuracy_agents"])
    for name in ("eval_accuracy", "eval_accuracy_worst", "consensus_distance"):
        assert result[name] == last[name]
    assert result["eval_accuracy"] > 0.7


def test_evaluates_the_average_and_every_agent(config, tmp_path):
    run = build.build(config)
    params, _ = run.task.init(config.seed)
    emulator = run.emulator(params, None, config, [])
    state, _ = emulator.run(emulator.init())
    metrics = run.evaluate(emulator, state)
    agents = emulator.params(state)
    each = [jax.tree.map(lambda x: x[i], agents) for i in range(6)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *each)
    assert metrics["eval_loss"] == pytest.approx(run.task.evaluate(mean)["eval_loss"], rel=1e-5)
    assert metrics["eval_loss_agents"] == [run.task.evaluate(one)["eval_loss"] for one in each]
    flat = np.stack([np.concatenate([x.ravel() for x in jax.tree.leaves(one)]) for one in each])
    distance = np.sqrt(((flat - flat.mean(0, dtype=np.float64)) ** 2).sum(1).mean())
    assert metrics["consensus_distance"] == pytest.approx(distance, rel=1e-5)


def test_same_bits_however_executed(config, tmp_path):
    config.gossip.random_delays = True
    expected = loop.train(config, tmp_path / "a")["params_digest"]
    config.emulation.update(num_devices=4, layout="replicated")
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("algorithm", ["ad_psgd", "pc_asgd"])
def test_replays_a_schedule(config, tmp_path, algorithm):
    config.algorithm = algorithm
    config.gossip.random_delays = True
    expected = loop.train(config, tmp_path / "a")["params_digest"]
    config.trace_path = str(tmp_path / "a/schedule.npz")
    config.gossip.graph = "ring"  # A replayed schedule brings its own graph.
    assert loop.train(config, tmp_path / "b")["params_digest"] == expected


def test_a_schedule_of_another_algorithm(config, tmp_path):
    """One saved schedule serves all algorithms, but for the random pairs, which are AD-PSGD's."""
    digests = {}
    for algorithm in ("dsgd", "ad_psgd"):
        config.algorithm = algorithm
        digests[algorithm] = loop.train(config, tmp_path / algorithm)["params_digest"]
    config.trace_path = str(tmp_path / "dsgd/schedule.npz")
    assert loop.train(config, tmp_path / "again")["params_digest"] == digests["ad_psgd"]
    config.algorithm = "dsgd"
    config.trace_path = str(tmp_path / "ad_psgd/schedule.npz")
    with pytest.raises(ConfigError, match="has the random pairs of ad_psgd"):
        build.build(config)


def test_a_schedule_brings_its_graph(config, tmp_path):
    """Also where pairs are drawn for it: the config's own graph is not even made."""
    schedules.constant(graphs.ring(4, delays=1)).save(tmp_path / "ring.npz")
    config.trace_path = str(tmp_path / "ring.npz")
    config.algorithm = "ad_psgd"
    config.gossip.num_agents = 7  # Two cliques cannot have them.
    loop.train(config, tmp_path / "run")
    saved = GossipSchedule.load(tmp_path / "run/schedule.npz")
    assert saved.graph.num_agents == 4 and saved.num_rounds == 30


def test_config_and_python_know_the_same_algorithms():
    assert set(validation.GOSSIP_ALGORITHMS) == set(decentralized.ALGORITHMS)


def test_reads_delays_from_csv(config, tmp_path):
    path = tmp_path / "delays.csv"
    path.write_text("round,agent,neighbor,delay\n4,0,1,2\n")
    config.trace_path = str(path)
    loop.train(config, tmp_path / "a")
    saved = GossipSchedule.load(tmp_path / "a/schedule.npz")
    assert saved.num_rounds == 20 and saved.delays[4, 0, 1] == 2 and saved.delays[3, 2, 3] == 3


@pytest.mark.parametrize("algorithm, graph", list(zip(
    validation.GOSSIP_ALGORITHMS, ["ring", "torus", "complete", "star", "erdos_renyi", "ring"])))
def test_every_algorithm_on_every_graph_learns(config, tmp_path, algorithm, graph, read_metrics):
    config.algorithm, config.gossip.graph = algorithm, graph
    config.gossip.split = "label"
    config.num_gradients = 60
    config.learning_rate = 0.1
    loop.train(config, tmp_path)
    losses = [line["eval_loss"] for line in read_metrics(tmp_path) if "eval_loss" in line]
    assert losses[-1] < losses[0] < 3.0


def test_non_finite_loss_names_round_and_agent(config, tmp_path):
    config.algorithm, config.learning_rate = "dsgd", 1e30
    config.log_every = 6
    with pytest.raises(FloatingPointError, match=r"loss is nan at event \d+ \(round \d+, agent \d\)"):
        loop.train(config, tmp_path)


@pytest.mark.parametrize("module", [cifar10_gossip, digits_gossip])
def test_shipped_configs_are_valid(module):
    validation.validate(module.get_config())


@pytest.mark.parametrize("changes, message", [
    ({"gossip.graph": "line"}, "gossip.graph must be one of two_cliques, ring"),
    ({"gossip.mixing": "mean"}, "gossip.mixing must be one of metropolis, uniform"),
    ({"gossip.split": "size"}, "gossip.split must be one of random, label"),
    ({"gossip.criterion": "ascent"}, "gossip.criterion must be one of paper, descent"),
    ({"gossip.theta": 1.5}, "gossip.theta must be a number at least 0 and at most 1, got 1.5"),
    ({"gossip.delay": -1}, "gossip.delay must be an integer from 0 to 32767"),
    ({"gossip.num_agents": 5}, "gossip: num_agents must be an even number"),
    ({"gossip.num_agents": 200}, "gossip: batch_size must be an integer from 1 to 7"),
    ({"gossip.graph": "erdos_renyi", "gossip.edge_probability": 0.0}, "gossip: .*must be connected"),
    ({"num_gradients": None}, "num_epochs or num_gradients must be set"),
    ({"emulation.backend": "debug"}, "emulation.backend='debug' and algorithm='pc_asgd_pv' do not"),
    ({"emulation.events_per_device": 2}, "emulation.events_per_device=2 and algorithm="),
    ({"emulation.snapshot_dtype": "bfloat16"}, "emulation.snapshot_dtype='bfloat16' and"),
    ({"emulation.backend": "jit", "emulation.num_devices": 2}, "emulation.backend='jit' and"),
    ({"trace_path": "nowhere.npz"}, "trace_path: .*nowhere.npz"),
])
def test_bad_fields(config, changes, message):
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message) as caught:
        validation.validate(config)
        build.build(config)
    assert "\n" not in str(caught.value)


def test_a_schedule_that_is_too_short(config, tmp_path):
    short = schedules.random_delays(graphs.two_cliques(6, bridge_delay=3), 4, seed=0)
    short.save(tmp_path / "s.npz")
    config.trace_path = str(tmp_path / "s.npz")
    with pytest.raises(ConfigError, match="has 4 rounds, but the run has 20"):
        build.build(config)


def test_another_schedule_is_refused_in_the_same_workdir(config, tmp_path):
    loop.train(config, tmp_path)
    schedules.constant(graphs.two_cliques(6, bridge_delay=2)).save(tmp_path / "schedule.npz")
    with pytest.raises(ConfigError, match="another schedule"):
        loop.train(config, tmp_path)

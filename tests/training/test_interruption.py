"""Runs that are told to stop between any two calls, and go on."""

from configs import default
import pytest

from asgd.training import checkpoints, interruption, loop, progress


@pytest.fixture
def config():
    config = default.get_config()
    config.num_gradients = 48
    config.model.hidden = (4,)
    config.cluster.num_workers = config.gossip.num_agents = 4
    config.gossip.graph = "ring"
    config.log_every = 20
    config.evaluate_every_epochs = 0.5
    config.emulation.waves_per_call = 1
    return config


@pytest.fixture
def stop_at(monkeypatch):
    """Returns a function that makes the next run hear a SIGTERM when it listens for the n-th time."""
    def use(number):
        class Heard(interruption.Interruption):
            asked = 0

            def __call__(self):
                self.asked += 1
                return self.asked >= number

        monkeypatch.setattr(progress, "Interruption", Heard)

    return use


@pytest.mark.parametrize("algorithm", ["dc_asgd_a", "dsgd", "delayed_averaging"])
def test_it_goes_on_where_it_stopped(config, tmp_path, stop_at, algorithm):
    config.algorithm = algorithm
    config.emulation.num_devices = 3
    whole = loop.train(config, tmp_path / "whole")
    reached = []
    for asked in (2, 3):
        stop_at(asked)
        with pytest.raises(interruption.Preempted, match=r"stopped by SIGTERM after \d+ gradients"):
            loop.train(config, tmp_path / "run")
        reached.append(checkpoints.steps_in(tmp_path / "run")[-1])
    assert reached == sorted(set(reached)) and any(step % 20 for step in reached)
    # Agents stop between rounds only.
    assert algorithm != "dsgd" or not any(step % 4 for step in reached)
    stop_at(1000)
    config.emulation.num_devices = 2
    assert loop.train(config, tmp_path / "run")["params_digest"] == whole["params_digest"]
    first, other = (tmp_path / name / "metrics.jsonl" for name in ("whole", "run"))
    assert first.read_bytes() == other.read_bytes()


def test_the_end_is_the_end(config, tmp_path, stop_at):
    """Who is told to stop at the last event has nothing left to do later."""
    config.log_every = 48
    config.evaluate_every_epochs = 0.5
    config.emulation.waves_per_call = 128
    stop_at(1)  # At the evaluation, event 45, and then at the end.
    with pytest.raises(interruption.Preempted, match="after 45"):
        loop.train(config, tmp_path)
    assert loop.train(config, tmp_path)["gradients"] == 48


def test_the_debug_backend_stops_without_a_checkpoint(config, tmp_path, stop_at):
    config.emulation.backend = "debug"
    config.num_gradients = 3
    config.evaluate_every_epochs = 0.0112
    stop_at(1)
    with pytest.raises(interruption.Preempted, match="goes on from 0"):
        loop.train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()

"""Runs whose loss or parameters are no longer finite."""

import json
import math
import shutil

from configs import default
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.cluster import Trace
from asgd.training import checkpoints, loop
from asgd.training.nonfinite import NonFiniteError
from asgd.workloads import sampling, task as task_lib


@pytest.fixture
def config():
    config = default.get_config()
    config.num_gradients = 60
    config.model.hidden = (4,)
    config.cluster.num_workers = 4
    config.log_every = 10
    config.evaluate_every_epochs = 0.5
    return config


@pytest.fixture
def poison(monkeypatch):
    """Returns a function that poisons the loss of batches that hold a certain image, somehow."""
    def use(event, how):
        loss_fn = task_lib.Task.loss_fn

        def bad_loss(self, params, batch, key=None):
            rows = sampling.EventSampler(self.num_examples, 16, 0).indices(np.array([event]))
            hit = (batch["image"][0] == self.dataset.train["image"][rows[0, 0]]).all()
            return how(loss_fn(self, params, batch, key), params, hit)

        monkeypatch.setattr(task_lib.Task, "loss_fn", bad_loss)

    return use


def nan_loss(loss, params, hit):
    return jnp.where(hit, jnp.nan, 1.0) * loss


def infinite_gradient_of_one_leaf(loss, params, hit):
    # The loss stays finite: the square root of 0 is 0, but its slope is infinite.
    x = params["Dense_1"]["bias"]
    return loss + jnp.sqrt(jnp.where(hit, 0.0, 1.0) * jnp.square(x[0] + 9.0)) * 1e-3


@pytest.mark.parametrize("how, words, leaf, num_devices, every", [
    (nan_loss, "loss is nan at", "['Dense_0']['bias']", 1, 1000),
    (infinite_gradient_of_one_leaf, "parameters are not finite after", "['Dense_1']['bias']", 2, 20)])
def test_event_worker_staleness_and_leaf_are_named(config, tmp_path, poison, how, words, leaf,
                                                   num_devices, every):
    poison(33, how)
    config.emulation.num_devices = num_devices
    config.checkpoint.every_gradients = every
    with pytest.raises(NonFiniteError) as caught:
        loop.train(config, tmp_path)
    trace = Trace.load(tmp_path / "trace.npz")
    where = f"event 33 (worker {trace.worker[33]}, staleness {trace.staleness[33]})"
    assert str(caught.value).startswith(f"{words} {where}")
    assert f"first leaf that is not finite then: params{leaf}; checkpoint 33 is from before it" in str(
        caught.value)
    assert (caught.value.event, caught.value.leaf) == (33, leaf)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert checkpoints.steps_in(tmp_path)[-1] == 33


def test_the_checkpoint_from_before_is_what_a_healthy_run_goes_on_from(config, tmp_path, poison,
                                                                       monkeypatch):
    healthy = loop.train(config, tmp_path / "healthy")
    with monkeypatch.context():
        poison(33, nan_loss)
        with pytest.raises(NonFiniteError):
            loop.train(config, tmp_path / "run")
        with pytest.raises(NonFiniteError, match="event 33"):  # As often as one likes.
            loop.train(config, tmp_path / "run")
        monkeypatch.undo()
        assert loop.train(config, tmp_path / "run")["params_digest"] == healthy["params_digest"]
    run, other = (tmp_path / name / "metrics.jsonl" for name in ("run", "healthy"))
    assert run.read_bytes() == other.read_bytes()


def test_skip_drops_and_counts(config, tmp_path, poison):
    poison(33, infinite_gradient_of_one_leaf)
    config.on_nonfinite = "skip"
    result = loop.train(config, tmp_path / "a")
    assert result["skipped"] == 1 and result["gradients"] == 60
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 1]
    assert all(math.isfinite(line["loss"]) for line in lines)
    # The count goes on after an interruption.
    config.emulation.num_devices = 2
    config.checkpoint.every_gradients = 40
    config.checkpoint.keep = 5
    assert loop.train(config, tmp_path / "b")["params_digest"] == result["params_digest"]
    shutil.rmtree(tmp_path / "b/checkpoints/60")
    assert loop.train(config, tmp_path / "b")["skipped"] == 1


def test_local_steps(config, tmp_path):
    config.algorithm = "local_sgd"
    config.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match=r"event \d+ \(worker \d+, drift \d+\).*Dense_0.*is from before"
                       ) as caught:
        loop.train(config, tmp_path)
    assert checkpoints.steps_in(tmp_path)[-1] == caught.value.event

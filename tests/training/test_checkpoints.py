"""Checkpoints in one process: damage, locks, changed configs, full disks."""

import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

from configs import default
import filelock
import jax
import numpy as np
import pytest

from asgd.emulation.spmd import Spmd, split_axis
from asgd.training import checkpoints, loop, progress
from asgd.training.validation import ConfigError


@pytest.fixture
def config():
    config = default.get_config()
    config.num_gradients = 60
    config.model.hidden = (16,)
    config.cluster.num_workers = 4
    config.log_every = 25
    config.evaluate_every_epochs = 0.5
    config.checkpoint.every_gradients = 20
    config.checkpoint.keep = 3
    return config


@pytest.fixture
def finished(config, tmp_path):
    """A finished run with the checkpoints 20, 40 and 60: its result and directory."""
    return loop.train(config, tmp_path / "run"), tmp_path / "run"


def forget(workdir, step):
    shutil.rmtree(workdir / "checkpoints" / str(step))


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bytes(folder):
    """Changes every 16th byte of what holds the arrays."""
    path = largest_file(folder)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[len(data) // 2::16] ^= 1
    path.write_bytes(data.tobytes())


def cut_in_half(folder):
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def lose_arrays(folder):
    largest_file(folder).unlink()


def lose_metadata(folder):
    for path in folder.rglob("*METADATA"):
        path.unlink()


@pytest.mark.parametrize("damage", [flip_bytes, cut_in_half, lose_arrays, lose_metadata])
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(config, finished, damage, caplog):
    expected, workdir = finished
    metrics = (workdir / "metrics.jsonl").read_bytes()
    damage(workdir / "checkpoints/60")
    with caplog.at_level(logging.INFO, "asgd"):
        assert loop.train(config, workdir)["params_digest"] == expected["params_digest"]
    assert "Checkpoint 60 is damaged, and left out for 40" in caplog.text
    assert "Resumed after 40 gradients" in caplog.text
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    assert checkpoints.steps_in(workdir) == [20, 40, 60]
    assert (workdir / "checkpoints/60.damaged").exists()


def test_an_unfinished_checkpoint_does_not_count(config, finished, caplog):
    expected, workdir = finished
    whole = workdir / "checkpoints/60"
    whole.rename(whole.with_name("60.orbax-checkpoint-tmp"))
    with caplog.at_level(logging.INFO, "asgd"):
        assert loop.train(config, workdir)["params_digest"] == expected["params_digest"]
    assert "Resumed after 40 gradients" in caplog.text


def test_nothing_is_begun_again_over_checkpoints_that_cannot_be_read(config, finished):
    _, workdir = finished
    for step in (20, 40, 60):
        flip_bytes(workdir / f"checkpoints/{step}")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(of 60: .*remove them"):
        loop.train(config, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert checkpoints.steps_in(workdir) == [20, 40, 60]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "uint8"])
def test_checksums_see_every_bit_and_not_the_split(dtype):
    host = np.arange(24).reshape(2, 12) % 2 if dtype == "bool" else np.arange(24).reshape(2, 12)
    host = np.asarray(jax.numpy.asarray(host, dtype))
    whole = Spmd(1).put(host, split_axis(1))
    padded = np.concatenate([host, np.zeros((2, 4), host.dtype)], axis=1)
    expected = checkpoints.checksums({"x": whole})
    assert checkpoints.checksums({"x": Spmd(4).put(padded, split_axis(1))}) == expected
    swapped = host[:, ::-1].copy()
    assert checkpoints.checksums({"x": Spmd(1).put(swapped, split_axis(1))}) != expected
    for bit in range(1 if dtype == "bool" else 8 * host.dtype.itemsize):
        words = host.copy().view(f"uint{8 * host.dtype.itemsize}")
        words[1, 7] ^= 1 << bit
        changed = Spmd(1).put(words.view(host.dtype), split_axis(1))
        assert checkpoints.checksums({"x": changed}) != expected


def test_arrays_are_compared_with_their_checksums(config, tmp_path, monkeypatch, caplog):
    """Also where the files are as they were written."""
    checksums = checkpoints.checksums
    config.num_gradients = 40

    def save(self, step, arrays, *rest):
        changed = [x + 1 if i == 0 and step == 40 else x for i, x in enumerate(arrays)]
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "checksums", lambda tree: checksums(tree) | (
                {"00000": checksums({"x": arrays[0]})["x"]}))
            original(self, step, changed, *rest)

    original = checkpoints.Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save)
        expected = loop.train(config, tmp_path)
    with caplog.at_level(logging.INFO, "asgd"):
        assert loop.train(config, tmp_path)["params_digest"] == expected["params_digest"]
    assert "Checkpoint 40 is damaged, and left out for 20: ValueError: array 00000 has changed" in caplog.text


def test_two_runs_on_one_workdir(config, tmp_path):
    tmp_path.joinpath("run").mkdir()
    with filelock.FileLock(tmp_path / "run/.lock"):
        with pytest.raises(ConfigError, match="another run is writing to"):
            loop.train(config, tmp_path / "run")
        assert [path.name for path in tmp_path.joinpath("run").iterdir()] == [".lock"]
    loop.train(config, tmp_path / "run")


def test_a_changed_config_needs_permission(config, finished, caplog):
    _, workdir = finished
    forget(workdir, 60)
    config.learning_rate = 0.2
    config.log_every = 10
    with pytest.raises(ConfigError, match=r"learning_rate=0.1, now 0.2.*allow_changes") as caught:
        loop.train(config, workdir)
    assert "log_every=25, now 10" in str(caught.value)
    config.checkpoint.allow_changes = True
    with caplog.at_level(logging.INFO, "asgd"):
        loop.train(config, workdir)
    assert "Goes on with another config: learning_rate=0.1, now 0.2" in caplog.text
    assert "Resumed after 40 gradients" in caplog.text
    assert json.loads((workdir / "config.json").read_text())["learning_rate"] == 0.2
    # Nor can parameters be others, nor what happened when, in the middle of a run.
    config.model.hidden = (32,)
    with pytest.raises(ConfigError, match=r"Dense_0'\]\['bias'\] was float32\[16\], and is float32\[32\]"):
        loop.train(config, workdir)
    config.model.hidden = (16,)
    config.cluster.num_workers = 5
    with pytest.raises(ConfigError, match="goes on with the one that it began with"):
        loop.train(config, workdir)


def test_metrics_that_are_gone_are_not_made_up(config, finished):
    _, workdir = finished
    metrics = workdir / "metrics.jsonl"
    size = metrics.stat().st_size
    os.truncate(metrics, size - 1)
    with pytest.raises(ValueError, match=f"metrics.jsonl has {size - 1} bytes, but had {size} when"):
        loop.train(config, workdir)
    assert metrics.stat().st_size == size - 1
    config.emulation.backend = "debug"
    with pytest.raises(ConfigError, match="workdir has checkpoints"):
        loop.train(config, workdir)


def test_metrics_do_not_depend_on_checkpoints(config, finished, tmp_path):
    _, workdir = finished
    config.checkpoint.every_gradients = 7
    loop.train(config, tmp_path / "other")
    assert (tmp_path / "other/metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()


def test_checkpoints_by_time(config, tmp_path, monkeypatch):
    """A clock that shows a minute more whenever it is looked at."""
    now = iter(range(0, 10**6, 60))
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(
        monotonic=lambda: next(now), perf_counter=time.perf_counter))
    config.checkpoint.every_gradients = 1000
    config.checkpoint.every_seconds = 150.0
    config.checkpoint.keep = 100
    config.log_every = 5
    loop.train(config, tmp_path)
    # It is looked at when a run begins, at every line, and after a checkpoint is begun: lines 5 and 10 are
    # 60 and 120 s later, 15 is due; so is every third one from there.
    assert checkpoints.steps_in(tmp_path) == [15, 30, 45, 60]


def test_a_full_disk_loses_nothing(config, finished, tmp_path):
    """A limit on the size of files stands for it: writers fail in the middle of a file."""
    expected, workdir = finished
    forget(workdir, 60)
    (tmp_path / "config.json").write_text(config.to_json())
    flags = [f"--config.{name}={value}" for name, value in {
        "num_gradients": 60, "model.hidden": "(16,)", "cluster.num_workers": 4, "log_every": 25,
        "evaluate_every_epochs": 0.5, "checkpoint.every_gradients": 20, "checkpoint.keep": 3}.items()]
    command = [sys.executable, "main.py", "--config=configs/default.py", f"--workdir={workdir}", *flags]
    size = largest_file(workdir / "checkpoints/40").stat().st_size

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    root = pathlib.Path(__file__).parents[2]
    # Compiled programs are files too.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    full = subprocess.run(command, cwd=root, text=True, capture_output=True, preexec_fn=limit, timeout=120,
                          env=environment)
    last = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "could not be written, those before it are kept" in last
    assert checkpoints.steps_in(workdir) == [20, 40]
    assert loop.train(config, workdir)["params_digest"] == expected["params_digest"]

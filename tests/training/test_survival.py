"""The program is killed, and goes on as if it had not been."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ["--config=configs/digits.py", "--config.num_gradients=400", "--config.model.hidden=(16,)",
          "--config.evaluate_every_epochs=2.0", "--config.log_every=3", "--config.algorithm=dc_asgd_a",
          "--config.momentum=0.5", "--config.cluster.softsync_n=4"]
KILLS = 10


def start(workdir, *flags, devices="1"):
    return subprocess.Popen(
        [sys.executable, "main.py", *CONFIG, f"--workdir={workdir}", *flags], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"JAX_NUM_CPU_DEVICES": devices})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Digest and metrics of a run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    out, err = start(workdir).communicate(timeout=120)
    return json.loads(out)["params_digest"], (workdir / "metrics.jsonl").read_bytes()


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.001)


def is_written(checkpoints):
    """Tells whether a checkpoint is half written now."""
    return checkpoints.exists() and any("tmp" in path.name for path in checkpoints.iterdir())


@pytest.mark.parametrize("seed", [0, 1])  # So 20 moments, for two processes of tests.
def test_killed_at_random_moments(tmp_path, expected, seed):
    dice, killed, while_writing = random.Random(seed), 0, 0
    # Checkpoints so often that a kill now and then meets one, and progress in spite of all kills.
    flags = ["--config.checkpoint.every_gradients=7"]
    while killed < KILLS:
        process = start(tmp_path, *flags)
        metrics, checkpoints = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
        if killed % 4 == 0:  # Before it has done anything.
            time.sleep(2 * dice.random())
        else:
            before = metrics.stat().st_size if metrics.exists() else 0
            wait_for(process, lambda: metrics.exists() and metrics.stat().st_size > before)
            time.sleep(0.05 * dice.random())
            if killed % 2:
                wait_for(process, lambda: is_written(checkpoints))
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        while_writing += is_written(checkpoints)
    assert while_writing >= 1
    # The last ones go on with another number of devices, and other checkpoints.
    process = start(tmp_path, "--config.emulation.num_devices=2",
                    "--config.checkpoint.every_gradients=100", devices="2")
    out, err = process.communicate(timeout=120)
    assert re.search(r"Resumed after \d+ gradients", err)
    assert json.loads(out)["params_digest"] == expected[0]
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected[1]


def test_sigterm_writes_a_checkpoint_wherever_the_run_is(tmp_path, expected):
    # One wave a call, and no other checkpoint than the last: it must come from the signal, and most likely
    # between two lines of metrics.
    flags = ["--config.emulation.waves_per_call=1", "--config.checkpoint.every_gradients=1000"]
    process = start(tmp_path, *flags)
    metrics = tmp_path / "metrics.jsonl"
    wait_for(process, lambda: metrics.exists() and metrics.stat().st_size)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and out == ""
    stopped = re.fullmatch(r"main.py: stopped by SIGTERM after (\d+) gradients; the same command goes on "
                           r"from \1", err.strip().splitlines()[-1])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [stopped[1]]
    out, err = start(tmp_path, *flags).communicate(timeout=60)
    assert f"Resumed after {stopped[1]} gradients" in err
    assert json.loads(out)["params_digest"] == expected[0]
    assert metrics.read_bytes() == expected[1]

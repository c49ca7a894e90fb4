"""Jobs of two real processes with two devices each: the bits of one process with four."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from configs import digits
import pytest

from asgd.training import checkpoints, loop
from asgd.workloads import models
from launch import local

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
CONFIG = ["--config=configs/digits.py", "--config.num_gradients=120", "--config.model.hidden=(16,)",
          "--config.log_every=1", "--config.evaluate_every_epochs=0.5",
          "--config.checkpoint.every_gradients=10"]


def job(workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", "--num_processes=2", "--devices_per_process=2", "--",
         *CONFIG, f"--workdir={workdir}"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"ASGD_HEARTBEAT_SECONDS": "5"})


def pids_of(number):
    """The processes with that number in a job of this test, of which the younger one trains."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if f"ASGD_PROCESS_ID={number}\0".encode() in environment and (
                os.environ["PYTEST_CURRENT_TEST"].split()[0].encode() in environment):
            found.append(int(path.name))
    return sorted(found)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Digest and metrics of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    config = digits.get_config()
    config.update(num_gradients=120, log_every=1, evaluate_every_epochs=0.5)
    config.model.hidden = (16,)
    config.emulation.num_devices = 4
    return loop.train(config, workdir)["params_digest"], (workdir / "metrics.jsonl").read_bytes()


def ended(code):
    """A process that ends with an exit code, or by a signal if it is negative."""
    how = f"os._exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
    process = subprocess.Popen([sys.executable, "-c", f"import os; {how}"])
    process.wait()
    return process


@pytest.mark.parametrize("codes, expected", [
    ([0, 0], 0), ([0, 1], 1), ([-9, 0], 137), ([0, 143], 143), ([143, 143], 143), ([-15, -15], 143), ([2, 2], 2)])
def test_the_exit_code_is_that_of_who_failed_first(codes, expected):
    assert local.wait([ended(code) for code in codes]) == expected


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="finds the processes in /proc")
def test_without_launcher_nobody_goes_on(tmp_path):
    first = job(tmp_path)
    while first.poll() is None and len(pids_of(0)) + len(pids_of(1)) < 4:
        time.sleep(0.01)
    first.kill()
    first.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while pids_of(0) + pids_of(1) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not pids_of(0) + pids_of(1)


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_all_and_the_same_command_goes_on(tmp_path, expected, victim):
    first = job(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while first.poll() is None and not checkpoints.steps_in(tmp_path):
        time.sleep(0.01)
    os.kill(pids_of(victim)[-1], signal.SIGKILL)
    out, err = first.communicate(timeout=60)  # Within a minute.
    assert first.returncode == 137 and out == ""
    assert f"launch.local: process {victim} ended with exit code 137; the others end too" in err
    killed, other = (f"{'[1] ' if number else ''}{ROOT}/main.py: " for number in (victim, 1 - victim))
    end = "; the same command goes on from the last checkpoint"
    assert f"{killed}ended by SIGKILL{end}" in err
    assert f"{other}another process of the job has ended, or cannot be reached, so this one ends too{end}" in err

    if victim == 0:
        return  # Who was killed does not matter to what is there.
    again = job(tmp_path)
    out, err = again.communicate(timeout=120)
    assert re.search(r"Resumed after [1-9]\d* gradients", err), err
    assert out.count("\n") == 1 and json.loads(out)["params_digest"] == expected[0]
    assert metrics.read_bytes() == expected[1]
    assert len(list(tmp_path.glob("events.out*"))) == 2  # One of each job, not of each process.


def test_other_models_and_topologies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import several_runs

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(models._MODELS, "cnn", models._MODELS["cnn"])  # Put back afterwards.
    processes = local.start([str(tmp_path / "job")], 2, 2, HERE / "several_runs.py")
    digests = {}
    for name, config in several_runs.configs():
        config.emulation.num_devices = 4
        digests[name] = loop.train(config, tmp_path / "alone" / name)["params_digest"]
    assert local.wait(processes) == 0
    assert json.loads((tmp_path / "job/digests.json").read_text()) == digests
    for name in digests:
        one, several = (tmp_path / where / name / "metrics.jsonl" for where in ("alone", "job"))
        assert one.read_bytes() == several.read_bytes()


def test_sigterm_stops_all_at_the_same_event(tmp_path, expected):
    first = job(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while first.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 143 and out == ""
    stops = re.findall(r"main.py: stopped by SIGTERM after (\d+) gradients", err)
    assert len(stops) == 2 and stops[0] == stops[1]
    assert (tmp_path / "checkpoints" / stops[0]).exists()


def test_a_config_that_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--num_processes=2", "--", *CONFIG,
         f"--workdir={tmp_path}", "--config.batch_size=0"], cwd=ROOT, text=True, capture_output=True,
        timeout=120)
    assert done.returncode == 2 and "batch_size must be" in done.stderr and "Traceback" not in done.stderr

"""launch.sweep as a program, mostly with a program in main.py's place."""

import csv
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Ends as a file named by its seed says: with an exit code, when it is told to stop, or with a result.
PROGRAM = """
import json, os, pathlib, signal, sys, time
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
told, folder, seed = pathlib.Path(os.environ["STUB"]), pathlib.Path(flags["workdir"]), flags["config.seed"]
with open(folder / "starts", "a") as file:
    file.write("x")
print("what it logs", file=sys.stderr)
if (told / f"fail{seed}").exists():
    print("main.py: a reason", file=sys.stderr)
    sys.exit(int((told / f"fail{seed}").read_text()))
if (told / f"silent{seed}").exists():
    sys.exit(0)
if (told / "wait").exists():
    def stop(number, frame):
        (folder / "checkpoint").touch()
        if not (told / f"stubborn{seed}").exists():
            sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    (folder / "ready").touch()
    while True:
        time.sleep(0.01)
if (told / "alone").exists():
    os.close(os.open(told / "lock", os.O_CREAT | os.O_EXCL))
    time.sleep(0.2)
    os.remove(told / "lock")
print(json.dumps({"eval_loss": int(seed) / 4, "resumed": (folder / "checkpoint").exists()}))
"""


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path}/out", f"--program={tmp_path}/program.py"]

    def start(*more):
        return subprocess.Popen([sys.executable, "-m", "launch.sweep", *flags, *more], cwd=ROOT, text=True,
                                env=os.environ | {"STUB": str(tmp_path)}, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True)

    def run(*more):
        process = start(*more)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    run.start = start
    return run


def table(tmp_path):
    with open(tmp_path / "out/sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def starts(tmp_path):
    return {path.parent.name: len(path.read_text()) for path in (tmp_path / "out").glob("*/starts")}


def test_failed_runs_are_reported_and_only_they_run_again(sweep, tmp_path):
    (tmp_path / "fail2").write_text("2")
    (tmp_path / "silent3").touch()
    code, out, err = sweep("--grid=seed=1,2,3,4", "--parallel=3")
    assert code == 1
    assert json.loads(out) == {"points": 4, "done": 2, "csv": f"{tmp_path}/out/sweep.csv"}
    assert f"failed with exit code 2: {tmp_path}/out/seed=2: main.py: a reason\n" in err
    assert "seed=3: it ended without a line of JSON" in err and err.count("failed with") == 2
    assert [list(row.values()) for row in table(tmp_path)] == [
        ["seed=1", "done", "1", "0.25", "False"], ["seed=2", "unfinished", "2", "", ""],
        ["seed=3", "unfinished", "3", "", ""], ["seed=4", "done", "4", "1.0", "False"]]
    assert list(table(tmp_path)[0]) == ["point", "status", "seed", "eval_loss", "resumed"]
    assert "what it logs" in (tmp_path / "out/seed=1/log.txt").read_text()

    (tmp_path / "fail2").unlink()
    (tmp_path / "silent3").unlink()
    code, out, err = sweep("--grid=seed=1,2,3,4")
    assert code == 0 and json.loads(out)["done"] == 4 and "4/4" in err
    assert starts(tmp_path) == {"seed=1": 1, "seed=2": 2, "seed=3": 2, "seed=4": 1}


def wait_for(tmp_path, name, count):
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob(f"*/{name}"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_lets_runs_save_and_the_same_command_goes_on(sweep, tmp_path, number):
    (tmp_path / "wait").touch()
    process = sweep.start("--grid=seed=1,2,3", "--parallel=2")
    wait_for(tmp_path, "ready", 2)
    # Ctrl-C goes to all that the terminal runs in the foreground.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the same command goes on" in err and "Traceback" not in err and "failed" not in err
    assert json.loads(out)["done"] == 0
    assert len(list((tmp_path / "out").glob("*/checkpoint"))) == 2
    assert starts(tmp_path) == {"seed=1": 1, "seed=2": 1}
    assert [row["status"] for row in table(tmp_path)] == ["unfinished", "unfinished", "not started"]

    (tmp_path / "wait").unlink()
    code, out, err = sweep("--grid=seed=1,2,3")
    assert code == 0, err
    assert [row["resumed"] for row in table(tmp_path)] == ["True", "True", "False"]


def test_a_second_signal_kills(sweep, tmp_path):
    (tmp_path / "wait").touch()
    (tmp_path / "stubborn1").touch()
    process = sweep.start("--grid=seed=1,2,3", "--parallel=2")
    for name in ("ready", "checkpoint"):
        wait_for(tmp_path, name, 2)
        time.sleep(0.3)  # In which the place of the second could be taken by the third.
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert starts(tmp_path) == {"seed=1": 1, "seed=2": 1}


def test_not_more_run_at_once_than_asked_for(sweep, tmp_path):
    (tmp_path / "alone").touch()
    code, _, err = sweep("--grid=seed=1,2,3", "--parallel=1")
    assert code == 0, err


def test_a_point_that_was_run_with_another_config_is_refused(sweep, tmp_path):
    assert sweep("--grid=seed=1")[0] == 0
    (tmp_path / "out/seed=1/config.json").write_text(
        json.dumps({"batch_size": 16, "emulation": {"num_devices": 1}}))
    same = sweep("--grid=seed=1", "--", "--config.emulation.num_devices=2")
    assert same[0] == 0
    code, out, err = sweep("--grid=seed=1", "--", "--config.batch_size=8")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "seed=1 was run with batch_size=16, which is now 8" in err
    assert starts(tmp_path) == {"seed=1": 1}


def test_slurm_array(sweep, tmp_path, stubs):
    """The printed command is run by an sbatch that runs all tasks, and an srun that runs its program."""
    write, env = stubs
    write("srun", '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    write("sbatch", """#!/usr/bin/env bash
        echo "$1" > "$STUB/array"
        for i in 0 1 2; do SLURM_ARRAY_TASK_ID=$i bash "${@:2}" || echo "$i: $?" >> "$STUB/codes"; done""")
    (tmp_path / "fail2").write_text("143")
    grid = ["--grid=seed=1,2 batch_size=8,16", "--parallel=2"]
    code, out, err = sweep(*grid, "--launcher=slurm", "--", "--config.num_gradients=20")
    assert code == 0, err
    env |= {"ASGD_PYTHON": sys.executable, "SLURM_JOB_ID": "1", "ASGD_MAX_RESTARTS": "0"}
    subprocess.run(["bash", "-c", out], cwd=ROOT, env=env, timeout=100, capture_output=True)
    assert (tmp_path / "array").read_text() == "--array=0-3%2\n"
    assert (tmp_path / "codes").read_text() == "2: 143\n"  # Which is what is queued again.
    code, out, _ = sweep(*grid, "--launcher=collect", "--", "--config.num_gradients=20")
    assert code == 0 and json.loads(out)["done"] == 2
    assert [(row["seed"], row["batch_size"], row["status"]) for row in table(tmp_path)] == [
        ("1", "8", "done"), ("1", "16", "done"), ("2", "8", "unfinished"), ("2", "16", "not started")]
    (tmp_path / "fail2").write_text("2")  # The exit code of a task is its run's.
    assert sweep(*grid, "--only=3", "--", "--config.num_gradients=20")[0] == 2


def test_commands_are_those_that_are_missing(sweep, tmp_path):
    assert sweep("--grid=seed=1")[0] == 0
    code, out, err = sweep("--grid=seed=1,2", "--launcher=commands", "--", "--config.model.hidden=(4,)")
    assert code == 0, err
    assert [shlex.split(line) for line in out.splitlines()] == [
        ["python", "main.py", "--config=configs/digits.py", "--config.model.hidden=(4,)", "--config.seed=2",
         f"--workdir={tmp_path}/out/seed=2"]]
    out = sweep("--grid=seed=1", "--launcher=commands", "--workdir=gs://bucket/a/")[1]
    assert out.endswith("--workdir=gs://bucket/a/seed=1\n")


@pytest.mark.parametrize("flags, message", [
    (["--grid=nope=1"], "--config has no field 'nope'"),
    (["--grid=seed=1", "--launcher=pbs"], "--launcher=pbs"),
    (["--grid=seed=1", "batch_size=2"], "unexpected 'batch_size=2'"),
    (["--grid=seed=1", "--", "--workdir=x"], "unexpected '--workdir=x'"),
    (["--grid=seed=1", "--workdir=gs://bucket/a"], "--workdir=gs://bucket/a must be a folder"),
    (["--grid=seed=1,2", "--only=2"], "--only=2 must be from 0 to 1"),
    (["--grid=seed=1", "--only=NO_SUCH_VARIABLE"], "--only=NO_SUCH_VARIABLE must be from 0 to 0"),
    (["--grid=seed=1", "--only=0", "--launcher=collect"], "--only is for --launcher=local"),
])
def test_bad_flags(sweep, tmp_path, flags, message):
    code, out, err = sweep(*flags)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_real_runs(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "launch.sweep", "--config=configs/digits.py",
               f"--workdir={tmp_path}/out", "--grid=learning_rate=0.1,0.5", "--parallel=1", "--",
               "--config.num_gradients=20", "--config.model.hidden=(4,)"]
    logs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["done"] == 2
        assert " absl" in done.stderr and " jax" not in done.stderr  # The sweep itself starts at once.
        logs.append({path: path.read_text() for path in (tmp_path / "out").glob("*/log.txt")})
    assert logs[0] == logs[1]  # What is done is not run again.
    low, high = table(tmp_path)
    assert (low["learning_rate"], high["learning_rate"]) == ("0.1", "0.5")
    assert low["gradients"] == "20" and low["params_digest"] != high["params_digest"]
    for row in (low, high):
        result = json.loads((tmp_path / "out" / row["point"] / "result.json").read_text())
        assert row["eval_accuracy"] == str(result["eval_accuracy"])
        assert "20/20" in (tmp_path / "out" / row["point"] / "log.txt").read_text()

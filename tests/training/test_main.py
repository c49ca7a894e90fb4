"""The program itself, as a process: last line and exit codes; see also test_survival.py."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["--config=configs/digits.py", "--config.num_gradients=150", "--config.model.hidden=(16,)"]


def start(*flags, **env):
    return subprocess.Popen([sys.executable, "main.py", *flags], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | env)


def run(*flags, **env):
    process = start(*flags, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_last_line(tmp_path):
    code, out, err = run(*SMALL, f"--workdir={tmp_path}/a")
    assert code == 0, err
    result = json.loads(out)
    assert out.count("\n") == 1
    assert set(result) == {"eval_accuracy", "eval_loss", "gradients", "updates", "virtual_time",
                           "gradients_per_second", "workdir", "params_digest"}
    assert "Dense_0/kernel" in err and "staleness" in err and "150/150" in err


@pytest.mark.parametrize("flags, code, message", [
    (["--config.nope=1"], 2, "--config has no field 'nope'"),
    (["--nope=1"], 2, "Unknown command line flag 'nope'"),
    (["--config.batch_size=many"], 2, "--config.batch_size"),
    (["--config.algorithm=adam"], 2, "algorithm must be one of sgd"),
    (["--config.emulation.num_devices=3"], 2, "num_devices=3, but JAX has 1"),
    (["--config.dataset.name=mnist", "--config.dataset.data_dir=/nonexistent"], 2,
     "mnist is not prepared .* pip install tensorflow"),
    (["--config.learning_rate=1e30"], 1, r"loss is \w+ at event \d+ \(worker"),
])
def test_exit_codes(tmp_path, flags, code, message):
    got, out, err = run(*SMALL, f"--workdir={tmp_path}", *flags, JAX_NUM_CPU_DEVICES="1")
    last = err.strip().splitlines()[-1]
    assert got == code, err
    assert "Traceback" not in err and out == ""
    assert re.search(message, last), last


def test_missing_config_file():
    code, _, err = run("--config=configs/nope.py", "--workdir=unused")
    assert code == 2
    assert "configs/nope.py" in err and "Traceback" not in err

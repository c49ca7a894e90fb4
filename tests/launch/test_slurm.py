"""launch/slurm.sbatch, with an srun and an scontrol that say what they were told; both scripts' syntax."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch/slurm.sbatch"
SCRIPTS = [str(SCRIPT), str(ROOT / "launch/tpu_pod.sh")]


@pytest.fixture
def submit(tmp_path, stubs):
    write, env = stubs
    write("srun", '#!/usr/bin/env bash\necho "${ASGD_DISTRIBUTED:-alone} $*" >> "$STUB/srun"\nexit $CODE\n')
    write("scontrol", '#!/usr/bin/env bash\necho "$@" >> "$STUB/scontrol"\n')

    def run(*arguments, code=0, **variables):
        env.pop("ASGD_DISTRIBUTED", None)
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments], text=True, capture_output=True, timeout=60, cwd=tmp_path,
            env=env | {"CODE": str(code), "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT),
                       "ASGD_PYTHON": sys.executable} | variables)
        said = [(tmp_path / name).read_text() if (tmp_path / name).exists() else ""
                for name in ("srun", "scontrol")]
        return done, *said

    return run


def test_shellcheck_and_bash():
    assert subprocess.run(["shellcheck", *SCRIPTS], timeout=60).returncode == 0
    for script in SCRIPTS:
        assert subprocess.run(["bash", "-n", script], timeout=60).returncode == 0


def test_directives():
    """Preempted jobs are queued again, and tasks, not the shell, get SIGTERM before the time limit."""
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT.read_text(), re.M))
    assert "requeue" in found and found["open-mode"] == "append"
    assert re.fullmatch(r"TERM@\d+", found["signal"])
    assert found["ntasks-per-node"] == found["gpus-per-node"]


@pytest.mark.parametrize("variables, distributed", [
    ({"SLURM_NTASKS": "1"}, "alone"), ({"SLURM_NTASKS": "4"}, "auto"),
    ({"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}, "auto"), ({}, "alone"),
])
def test_one_task_is_not_distributed(submit, variables, distributed):
    done, srun, scontrol = submit("main.py", "--config=c", "--workdir=a b", ASGD_GRACE="9", **variables)
    assert done.returncode == 0, done.stderr
    assert srun.startswith(f"{distributed} ") and "--kill-on-bad-exit=0 --wait=9 " in srun
    assert srun.endswith(f"{sys.executable} main.py --config=c --workdir=a b\n")
    assert scontrol == ""


@pytest.mark.parametrize("code, restarts, requeued", [
    (143, "0", True), (143, "99", True), (143, "100", False), (1, "0", False), (2, "0", False),
    (137, "0", False)])
def test_only_a_written_checkpoint_is_queued_again(submit, code, restarts, requeued):
    done, _, scontrol = submit("main.py", code=code, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code and ("not queued again" in done.stderr) == (restarts == "100")
    assert scontrol == "requeue 7\n" * requeued


@pytest.mark.parametrize("arguments, variables, message", [
    ([], {}, "main.py --config=FILE --workdir=DIR"),
    (["main.py"], {"SLURM_SUBMIT_DIR": "/"}, "submit from the repository's root"),
    (["main.py"], {"ASGD_PYTHON": "no/python"}, "there is no no/python"),
])
def test_bad_use(submit, arguments, variables, message):
    done, srun, _ = submit(*arguments, **variables)
    assert done.returncode == 2 and srun == ""
    assert message in done.stderr and done.stderr.count("\n") == 1

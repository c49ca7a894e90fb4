"""launch/tpu_pod.sh, with a gcloud whose slice is two folders on this machine."""

import json
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch/tpu_pod.sh")
OWN = ["--name=pod", "--zone=z", "--type=v4-16", "--version=image", "--python=worker_python", "--poll=0"]
MAIN = ["--config=configs/digits.py", "--workdir=gs://bucket/a b", "--config.model.hidden=(4,)"]

# Commands are really run, once for each worker, in the worker's folder.
GCLOUD = """#!/usr/bin/env bash
shift 2
echo "$@" | tr '\\n' ' ' >> "$STUB/calls"; echo >> "$STUB/calls"
for flag; do case $flag in
  --command=*) command=${flag#*=} ;;
  --output-directory=*) out=${flag#*=} ;;
esac; done
case "$1 $2" in
  *" describe")
    if ! [ -f "$STUB/$1" ]; then echo "NOT_FOUND: no $3" >&2; exit 1; fi
    cat "$STUB/$1"
    if [ "$(cat "$STUB/$1")" = PROVISIONING ]; then
      echo ACTIVE > "$STUB/queued-resources"; echo READY > "$STUB/tpu-vm"; fi ;;
  *" create")
    if [ -e "$STUB/no_quota" ]; then echo "no quota" >&2; exit 1; fi
    rm -rf "$STUB"/worker?; mkdir "$STUB/worker0" "$STUB/worker1"
    echo PROVISIONING > "$STUB/queued-resources" ;;
  *" delete") rm -f "$STUB/queued-resources" "$STUB/tpu-vm" ;;
  *" scp") for worker in 0 1; do cp "$3" "$STUB/worker$worker/${4#*:}"; done ;;
  *" ssh")
    code=0
    for worker in 0 1; do
      cd "$STUB/worker$worker"
      WORKER=$worker bash -c "$command" > "${out:-$STUB}/$worker.log" || code=$?
    done
    exit "$code" ;;
esac
"""

# The python of a worker: makes an environment of itself, installs nothing, and ends main.py as told.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$@" >> "$STUB/installed"; ! [ -e "$STUB/no_index" ] ;;
  "main.py "*)
    test -f main.py || exit 99
    printf '%s\\n' "$ASGD_DISTRIBUTED" "$@" > "$STUB/argv"
    echo >> "$STUB/starts$WORKER"
    codes=($(sed -n "$(wc -l < "$STUB/starts$WORKER")p" "$STUB/attempts"))
    code=${codes[$WORKER]}
    if [ "$code" = lost ]; then
      echo PREEMPTED > "$STUB/tpu-vm"; echo SUSPENDED > "$STUB/queued-resources"; kill -9 $PPID; fi
    echo "a worker's log" >&2
    if [ "$code" = 0 ]; then echo '{"worker": '$WORKER'}'; fi
    exit "$code" ;;
esac
"""


@pytest.fixture
def pod(tmp_path, stubs):
    write, env = stubs
    write("gcloud", GCLOUD)
    write("worker_python", PYTHON)
    write("pkill", '#!/usr/bin/env bash\necho "$@" >> "$STUB/killed"\nexit 1\n')

    def run(attempts, *flags):
        (tmp_path / "attempts").write_text("\n".join(attempts) + "\n")
        done = subprocess.run([SCRIPT, *OWN, f"--logs={tmp_path}/logs", *flags, "--", *MAIN], env=env,
                              text=True, capture_output=True, timeout=60)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def trained(calls):
    return sum("--output-directory" in call for call in calls)


def test_success(pod, tmp_path):
    done, calls = pod(["0 0"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"worker": 1}
    assert (tmp_path / "argv").read_text().splitlines() == ["auto", "main.py", *MAIN]
    [version] = re.findall(r"^jax(==\S+)$", (ROOT / "requirements.txt").read_text(), re.M)
    installed = (tmp_path / "installed").read_text().splitlines()
    assert len(installed) == 2 and installed[0].endswith(f"-r requirements.txt jax[tpu]{version}")
    assert "a worker's log" in (tmp_path / "logs/attempt-001/1.log").read_text()
    assert [call.split()[1] for call in calls if call.split()[1] in ("create", "scp", "delete")] == [
        "create", "scp"]
    assert "--accelerator-type=v4-16 --runtime-version=image --zone=z" in " ".join(calls)
    # Each call but describe goes to all workers: what was left running, the environment, training.
    assert all("--worker=all" in call for call in calls if " ssh " in call or " scp " in call)
    assert (tmp_path / "killed").read_text().count("TERM") == 2


def test_preemption_makes_a_new_slice_and_goes_on(pod, tmp_path):
    done, calls = pod(["1 lost", "143 143", "0 0"], "--spot", "--project=p", "--max_failures=1")
    assert done.returncode == 0, done.stderr
    made = [call for call in calls if call.split()[1] in ("create", "delete")]
    assert [call.split()[1] for call in made] == ["create", "delete", "create"]
    assert "--spot" in made[0] and "--force --quiet" in made[1]
    assert all("--project=p" in call for call in calls)
    assert trained(calls) == 3
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "attempt-001", "attempt-002", "attempt-003"]


def test_restarts_are_bounded(pod):
    done, calls = pod(["143 143"] * 5, "--max_restarts=2")
    assert done.returncode == 1 and trained(calls) == 3
    assert "not started again after 2 restarts" in done.stderr


def test_failures_in_a_row_are_bounded(pod):
    done, calls = pod(["1 1", "143 143", "1 134", "0 1", "0 0"], "--max_failures=2")
    assert done.returncode == 1 and trained(calls) == 4
    assert "failed 2 times in a row" in done.stderr


def test_refused_config_is_not_retried(pod):
    done, calls = pod(["2 2", "0 0"])
    assert done.returncode == 2 and trained(calls) == 1
    assert "main.py refused its config" in done.stderr and "a worker's log" in done.stderr


def test_environment_that_cannot_be_made(pod, tmp_path):
    (tmp_path / "no_index").touch()
    done, calls = pod(["0 0"], "--max_failures=2")
    assert done.returncode == 1 and trained(calls) == 0
    assert sum(" scp " in call for call in calls) == 2


def test_slice_that_cannot_be_had(pod, tmp_path):
    (tmp_path / "no_quota").touch()
    done, calls = pod(["0 0"])
    assert done.returncode == 1 and trained(calls) == 0
    assert done.stderr.strip().endswith("no quota")


def test_dry_run_prints_all_commands_and_runs_none(pod, tmp_path):
    done, calls = pod([], "--dry_run")
    assert done.returncode == 0 and calls == [] and not (tmp_path / "logs").exists()
    printed = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert len(printed) == len(done.stdout.splitlines())
    for line, words in zip(printed, ["mkdir", "tpu-vm describe", "queued-resources describe",
                                     "queued-resources create", "pkill", "tar -czf", "tpu-vm scp",
                                     "pip", "main.py"], strict=True):
        assert all(word in line for word in words.split())


@pytest.mark.parametrize("arguments, message", [
    (["--nam=a"], "unknown flag --nam=a"),
    (OWN, "needs -- and then the flags of main.py"),
    ([*OWN[1:], "--", *MAIN], "--name is missing"),
    ([*OWN, "--poll=soon", "--", *MAIN], "--poll must be a whole number, got soon"),
    ([*OWN, "--", MAIN[0]], "--workdir must be gs://BUCKET"),
    ([*OWN, "--", MAIN[0], "--workdir=runs/a"], "--workdir must be gs://BUCKET"),
    ([*OWN, "--", MAIN[1]], "--config=FILE is missing"),
])
def test_bad_flags(arguments, message, stubs):
    done = subprocess.run([SCRIPT, *arguments], env=stubs[1], text=True, capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1

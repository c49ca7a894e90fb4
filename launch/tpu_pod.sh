#!/usr/bin/env bash
# Trains a config on every worker of a Cloud TPU slice, and goes on when the slice was preempted.
#
#   launch/tpu_pod.sh --name=asgd --zone=us-east5-b --type=v6e-16 --version=v2-alpha-tpuv6e --spot -- \
#       --config=configs/cifar10.py --workdir=gs://BUCKET/runs/cifar10 --config.emulation.num_devices=16
#
# Needs gcloud, logged in to a project with TPU quota, and a --workdir that outlives the slice and that all
# workers see: a bucket which the slice's service account may write, or a mounted folder.
#
#   --name, --zone, --type, --version   of the slice, which is requested (queued) when there is none
#   --project=ID        instead of gcloud's own
#   --spot              requests a slice that may be preempted
#   --python=python3.11 of the workers; apt installs it where it is missing
#   --logs=logs         folder of the logs: attempt-001/0.log is of worker 0
#   --max_restarts=100  how often training is started again, and
#   --max_failures=3    how often it may fail in a row without being preempted
#   --poll=60           seconds between two looks at a slice that is not ready
#   --dry_run           prints the commands, and runs none
#
# The slice is kept, and paid for, until: gcloud compute tpus queued-resources delete NAME --force
#
# Exit codes: 0 done (the last line of JSON is on standard output), 1 failed too often, 2 a config or flag
# that cannot be used, 130 interrupted.

set -euo pipefail

say() { echo "tpu_pod.sh: $1" >&2; }
fail() { say "$2"; exit "$1"; }

name='' zone='' type='' version='' project='' spot=() python=python3.11 logs=logs
max_restarts=100 max_failures=3 poll=60 dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --version=* | --project=* | --python=* | --logs=* | --max_restarts=* \
      | --max_failures=* | --poll=*)
      flag=${1#--}
      printf -v "${flag%%=*}" %s "${flag#*=}" ;;
    --spot) spot=(--spot) ;;
    --dry_run) dry_run=true ;;
    --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit ;;
    --) break ;;
    *) fail 2 "unknown flag $1; flags of main.py go after --, and --help has this script's own" ;;
  esac
  shift
done
[ "${1:-}" = -- ] || fail 2 "needs -- and then the flags of main.py"
shift
for needed in name zone type version; do
  [ -n "${!needed}" ] || fail 2 "--$needed is missing; --help has an example"
done
for number in max_restarts max_failures poll; do
  [[ ${!number} =~ ^[0-9]+$ ]] || fail 2 "--$number must be a whole number, got ${!number}"
done
[[ " $*" == *" --config="* ]] || fail 2 "--config=FILE is missing after --"
[[ " $*" =~ \ --workdir=(gs://|/) ]] || fail 2 "--workdir must be gs://BUCKET/..., or a mounted /folder"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jax=$(sed -n 's/^jax==//p' "$root/requirements.txt")
tree=$(mktemp) errors=$(mktemp)
trap 'rm -f "$tree" "$errors"' EXIT
shown=2
if $dry_run; then shown=1; fi

# Prints a command, and runs it unless this is a dry run.
run() {
  { printf '+'; printf ' %q' "$@"; printf '\n'; } >&"$shown"
  $dry_run || "$@"
}

# Runs a verb of gcloud on the slice (tpu-vm) or on the request for it (queued-resources).
tpu() { run gcloud compute tpus "$1" "$2" "${@:3}" --zone="$zone" ${project:+--project="$project"}; }

# Prints the state of the slice or of the request; NONE where there is none.
state() {
  local out
  if out=$(tpu "$1" describe "$name" --format="value($2)" 2> "$errors"); then
    echo "$out"
  elif grep -q NOT_FOUND "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    fail 1 "cannot tell what state $name is in"
  fi
}

request() {
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot[@]+"${spot[@]}"}
}

# Returns when the slice is ready; requests it when there is none, or when it was preempted.
ensure_slice() {
  local slice queued
  if $dry_run; then
    tpu tpu-vm describe "$name" --format='value(state)'
    tpu queued-resources describe "$name" --format='value(state.state)'
    request
    return
  fi
  while true; do
    slice=$(state tpu-vm state)
    queued=$(state queued-resources state.state)
    case $slice/$queued in
      READY/*) return ;;
      NONE/NONE) request ;;
      */FAILED | STOPPED/*) fail 1 "$name is $slice and its request $queued: delete it, or start it" ;;
      PREEMPTED/NONE | TERMINATED/NONE) tpu tpu-vm delete "$name" --quiet ;;
      PREEMPTED/* | TERMINATED/* | */SUSPENDED) tpu queued-resources delete "$name" --force --quiet ;;
      *) say "waiting: $name is $slice, its request $queued"; sleep "$poll" ;;
    esac
  done
}

# Runs a command on all workers. Lost connections are noticed, as those of preempted workers.
on_all() {
  tpu tpu-vm ssh "$name" --worker=all --ssh-flag="-o ServerAliveInterval=30" --command="$1" "${@:2}"
}

# What an attempt before left running would keep the TPU; it may write its checkpoint first.
stop_all() {
  # shellcheck disable=SC2016
  on_all 'for _ in $(seq 30); do pkill -TERM -f "[.]venv/bin/python main[.]py" || break; sleep 5; done'
}

prepare() {
  stop_all &&
    run tar -czf "$tree" -C "$root" --exclude=.git --exclude=.venv --exclude=./runs --exclude=./logs . &&
    tpu tpu-vm scp "$tree" "$name:asgd.tar.gz" --worker=all &&
    on_all "set -e
      command -v $python > /dev/null || {
        sudo apt-get update -qq; sudo apt-get install -y -qq $python $python-venv; }
      mkdir -p asgd; tar -xzf asgd.tar.gz -C asgd; cd asgd
      [ -x .venv/bin/python ] || $python -m venv .venv
      .venv/bin/python -m pip install --quiet -r requirements.txt 'jax[tpu]==$jax'"
}

# Trains; each worker's log ends with main.py's exit code, if the worker is still there to say so.
train() {
  local flags
  flags=$(printf ' %q' "$@")
  on_all "cd asgd; ASGD_DISTRIBUTED=auto .venv/bin/python main.py$flags 2>&1
    code=\$?; echo; echo main.py exit code \$code; exit \$code" --output-directory="$folder"
}

# Prints done, refused, preempted or failed, from what the logs say.
outcome() {
  local log code codes=''
  for log in "$folder"/*.log; do
    code=$(sed -n 's/^main.py exit code //p' "$log" 2> /dev/null | tail -n 1) || true
    codes="$codes ${code:-lost}"
  done
  case "$codes " in
    *' 2 '*) echo refused ;;
    *' 143 '* | *' lost '*) echo preempted ;;
    *' '[!0]*) echo failed ;;
    *) echo 'done' ;;
  esac
}

trap 'trap - INT; say "stopping main.py on all workers"; stop_all || true; exit 130' INT
failures=0
for ((attempt = 1; attempt <= max_restarts + 1; attempt++)); do
  folder=$(printf '%s/attempt-%03d' "$logs" "$attempt")
  run mkdir -p "$folder"
  ensure_slice
  result=failed
  if prepare; then
    say "training, attempt $attempt; logs in $folder"
    train "$@" || say "not all workers ended well"
    if $dry_run; then exit; fi
    result=$(outcome)
  fi
  case $result in
    done) grep -h '^{' "$folder"/*.log | tail -n 1; exit ;;
    refused) tail -qn 4 "$folder"/0.log >&2; fail 2 "main.py refused its config: not started again" ;;
    preempted) failures=0 ;;
    failed) failures=$((failures + 1)) ;;
  esac
  [ "$failures" -lt "$max_failures" ] || fail 1 "failed $failures times in a row; see $folder"
  say "attempt $attempt: $result; starting again from the last checkpoint"
done
fail 1 "not started again after $max_restarts restarts"

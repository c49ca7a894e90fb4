"""Runs one training job as several processes of this machine.

    python -m launch.local --num_processes=2 --devices_per_process=2 -- \
        --config=configs/digits.py --workdir=runs/digits

What follows `--` is main.py's. Each process gets its own CPU devices, on which JAX's collectives go
through gloo; the result has the same bits as one process with all the devices. If a process fails,
the others end within a minute, and the same command goes on from the last checkpoint. Exit code: that
of the process that failed first, 128 and its signal's number if it was killed.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import app, flags

from asgd.training import distributed

_PROCESSES = flags.DEFINE_integer("num_processes", 2, "Processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices_per_process", 1, "CPU devices of each.", lower_bound=1)
_PROGRAM = pathlib.Path(__file__).parents[1] / "main.py"
# Longer than processes need to notice that another is gone.
_PATIENCE_SECONDS = 60
_STOPPED = 143


def start(arguments: list[str], num_processes: int, devices_per_process: int,
          program: pathlib.Path = _PROGRAM) -> list[subprocess.Popen]:
    """Starts the processes of a job; number i is the i-th of the list.

    The first one has this one's standard output and error; lines of the others begin with their number.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    # They end when nobody holds the other end any more, however this process ends.
    reading, _ = os.pipe()
    for number in range(num_processes):
        environment = os.environ | {
            distributed.COORDINATOR: address, distributed.NUM_PROCESSES: str(num_processes),
            distributed.PROCESS_ID: str(number), distributed.LAUNCHER: str(reading),
            "JAX_NUM_CPU_DEVICES": str(devices_per_process)}
        environment.setdefault(distributed.START, "30")
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments], env=environment, pass_fds=[reading],
            stderr=subprocess.PIPE if number else None, text=True, errors="replace")
        if number:
            threading.Thread(target=_copy, args=(process.stderr, number), daemon=True).start()
        processes.append(process)
    return processes


def wait(processes: list[subprocess.Popen]) -> int:
    """Waits for a job; returns its exit code.

    Once a process has failed the others have a minute to notice and say so themselves.
    """
    failed, deadline = None, float("inf")
    while failed is None or any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if failed is None:
            failed = next((i for i, code in enumerate(codes) if code), None)
            if failed is None and None not in codes:
                return 0
            if failed is not None and codes[failed] != _STOPPED:
                print(f"launch.local: process {failed} {_how(codes[failed])}; the others end too, the "
                      "same command goes on from the last checkpoint", file=sys.stderr, flush=True)
            if failed is not None:
                deadline = time.monotonic() + _PATIENCE_SECONDS
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    code = processes[failed].returncode
    return code if code > 0 else 128 - code


def _how(code):
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _copy(stream, number):
    for line in stream:
        print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)


def main(argv):
    processes = start(argv[1:], _PROCESSES.value, _DEVICES.value)

    def stop(*_):
        for process in processes:
            if process.poll() is None:
                process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to the others too.
    sys.exit(wait(processes))


if __name__ == "__main__":
    app.run(main)

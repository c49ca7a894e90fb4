"""Runs the points of a sweep as processes, and knows which are done."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, Optional, Sequence

from tqdm import tqdm

from asgd.training.fields import FREE
from launch.sweep_points import Point, SweepError

RESULT = "result.json"
LOG = "log.txt"
INTERRUPTED = (130, 143)  # Exit codes after which the same command goes on.


def result(folder: pathlib.Path, point: Point) -> Optional[dict[str, Any]]:
    """Returns a done point's last line of JSON, and None of any other.

    Raises:
      SweepError: when the folder's run is done, but had another config.
    """
    try:
        found = json.loads((folder / RESULT).read_text().splitlines()[-1])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    try:
        old = _flat(json.loads((folder / "config.json").read_text()))
    except (FileNotFoundError, ValueError):
        old = {}
    new = _flat(point.config)
    for field in sorted(old.keys() & new.keys()):
        if old[field] != new[field] and field not in FREE and not field.startswith("plan."):
            raise SweepError(f"{folder} was run with {field}={old[field]!r}, which is now {new[field]!r}:"
                             " give another --workdir, or delete that folder")
    return found


def run(points: Sequence[Point], workdir: pathlib.Path, program: str, parallel: int,
        total: int) -> dict[str, int]:
    """Runs points as processes, several at once, and returns their exit codes by name.

    Each writes into its own folder: standard error to ``log.txt``, and standard output to
    ``result.json``, which is only there when the exit code was 0. After SIGINT or SIGTERM no point is
    started and those that run get SIGTERM, so that they write checkpoints; after a second one they are
    killed. Points that did not end are not in what is returned.

    Args:
      points: what to run.
      workdir: has a folder for each point.
      program: a Python program that takes main.py's flags.
      parallel: how many run at once.
      total: number of points on the progress bar; those which are not run count as done.
    """
    queue, running, codes = list(points), {}, {}
    received: list[int] = []
    sent = 0
    with _signals(received), tqdm(total=total, initial=total - len(queue), unit="run", file=sys.stderr,
                                  dynamic_ncols=True) as bar:
        while running or (queue and not received):
            while queue and len(running) < parallel and not received:
                point = queue.pop(0)
                running[_start(point, workdir / point.name, program)] = point
            if len(received) > sent:
                for process in running:
                    process.send_signal(signal.SIGKILL if sent else signal.SIGTERM)
                sent = len(received)
                bar.write(f"stopping {len(running)} runs; once more kills them", file=sys.stderr)
            for process in [process for process in running if process.poll() is not None]:
                point = running.pop(process)
                codes[point.name] = _finish(process.returncode, workdir / point.name)
                bar.update(codes[point.name] not in INTERRUPTED)
            time.sleep(0.05)
    if received:
        raise Interrupted(received[0], codes)
    return codes


class Interrupted(Exception):
    """The sweep got a signal and has stopped its runs."""

    def __init__(self, number: int, codes: dict[str, int]):
        super().__init__(f"interrupted by {signal.Signals(number).name}; the same command goes on")
        self.exit_code = 128 + number
        self.codes = codes


def last_line(folder: pathlib.Path) -> str:
    """Returns the last line of a run's log, which says why it failed."""
    lines = [line.strip() for line in (folder / LOG).read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "its log is empty")


def _start(point, folder, program):
    folder.mkdir(parents=True, exist_ok=True)
    # In a session of its own, so that Ctrl-C does not reach it: it gets SIGTERM, which lets it save.
    with open(folder / LOG, "ab") as log, open(folder / f"{RESULT}.part", "wb") as out:
        return subprocess.Popen([sys.executable, program, *point.flags, f"--workdir={folder}"],
                                stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True)


def _finish(code, folder):
    if code == 0:
        try:
            json.loads((folder / f"{RESULT}.part").read_text().splitlines()[-1])
        except (IndexError, ValueError):
            with open(folder / LOG, "a") as log:
                log.write("it ended without a line of JSON on standard output\n")
            return 1
        os.replace(folder / f"{RESULT}.part", folder / RESULT)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _signals(received):
    """Appends SIGINT and SIGTERM to a list instead of ending the process."""
    numbers = signal.SIGINT, signal.SIGTERM
    old = [signal.signal(number, lambda got, frame: received.append(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, old):
            signal.signal(number, handler)


def _flat(tree, prefix=""):
    out = {}
    for name, value in tree.items():
        out.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return out

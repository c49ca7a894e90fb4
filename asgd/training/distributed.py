"""Jobs of several processes: how they find each other, agree, and end together."""

import faulthandler
import os
import signal
import sys
import threading
from typing import Any

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "ASGD_COORDINATOR", "ASGD_NUM_PROCESSES", "ASGD_PROCESS_ID"
AUTO, HEARTBEAT, START = "ASGD_DISTRIBUTED", "ASGD_HEARTBEAT_SECONDS", "ASGD_START_SECONDS"
LAUNCHER = "ASGD_LAUNCHER_PIPE"  # A file descriptor that says when the launcher is gone.


def initialize() -> None:
    """Joins the job that the environment tells of, if any; called before anything imports JAX.

    * ``ASGD_COORDINATOR`` (host:port of process 0), ``ASGD_NUM_PROCESSES`` and ``ASGD_PROCESS_ID`` say
      it all; ``launch/local.py`` and ``launch/kubernetes.yaml`` set them.
    * ``ASGD_DISTRIBUTED=auto`` leaves it to ``jax.distributed.initialize``, which knows Slurm, Open MPI,
      TPU pods and others.
    * Otherwise this process is alone.

    A process that hears nothing of another for ``ASGD_HEARTBEAT_SECONDS`` (20) ends, with one clear
    last line and exit code 1; so does one that waited ``ASGD_START_SECONDS`` (300) for the others to
    start.

    Raises:
      ValueError: naming the variable that cannot be used.
    """
    arguments = _arguments(os.environ)
    if arguments is None:
        return
    seconds, start = (_integer(os.environ, name, 1) if name in os.environ else default
                      for name, default in ((HEARTBEAT, 20), (START, 300)))
    _go_on_in_child()
    import jax

    jax.distributed.initialize(**arguments, initialization_timeout=start,
                               heartbeat_timeout_seconds=seconds, shutdown_timeout_seconds=seconds)


def is_first() -> bool:
    """Tells whether this is the process that writes what is written once."""
    import jax

    return jax.process_index() == 0


def from_first(value: int) -> int:
    """Returns the first process's integer, in all processes."""
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def all_processes(flag: bool) -> bool:
    """Returns, in all processes, whether all say True."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(flag).all())


def wait_for_all(name: str) -> None:
    """Returns when all processes have called it."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _arguments(environment) -> dict[str, Any] | None:
    """Returns the arguments of ``jax.distributed.initialize``, or None for one process."""
    given = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in environment]
    if not given:
        how = environment.get(AUTO, "")
        if how not in ("", "auto"):
            raise ValueError(f"{AUTO} must be auto or not set, got {how!r}")
        return {} if how else None
    for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID):
        if name not in environment:
            raise ValueError(f"{name} must be set too, as {given[0]} is")
    address = environment[COORDINATOR]
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{COORDINATOR} must be host:port, got {address!r}")
    count = _integer(environment, NUM_PROCESSES, 1)
    number = _integer(environment, PROCESS_ID, 0)
    if number >= count:
        raise ValueError(f"{PROCESS_ID} must be below {NUM_PROCESSES}={count}, got {number}")
    return dict(coordinator_address=address, num_processes=count, process_id=number)


def _integer(environment, name, least):
    text = environment[name]
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} must be an integer, at least {least}, got {text!r}")
    return int(text)


def _go_on_in_child() -> None:
    """Returns in a child process; the parent waits for it, and says how it ended.

    When another process of the job is gone, JAX aborts this one from a thread of its own, where
    nothing can be caught: only another process can say in a line what that means.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        faulthandler.disable()  # absl's: where this process stood says nothing of why another ended.
        threading.Thread(target=_end_with_parent, args=(reading,), daemon=True).start()
        return
    os.close(reading)
    if LAUNCHER in os.environ:
        launcher = _integer(os.environ, LAUNCHER, 0)
        threading.Thread(target=_end_with_parent, args=(launcher,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to the child too.
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        what = ("another process of the job has ended, or cannot be reached, so this one ends too"
                if code == -signal.SIGABRT else f"ended by {signal.Signals(-code).name}")
        print(f"{sys.argv[0]}: {what}; the same command goes on from the last checkpoint",
              file=sys.stderr, flush=True)
    os._exit(1 if code == -signal.SIGABRT else 128 - code if code < 0 else code)


def _end_with_parent(reading):
    os.read(reading, 1)  # Returns when the parent is gone.
    os._exit(1)

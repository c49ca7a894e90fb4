"""Workers that are Ray actors, on one machine or many."""

import logging
import os
import pathlib
import socket
import threading
import time
import warnings
from typing import Any, Callable

import jax
import numpy as np

from asgd.recording.gradients import Gradients, Sent
from asgd.recording.server import Server

log = logging.getLogger("asgd")
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
             "jax_threefry_partitionable", "jax_numpy_dtype_promotion")


class RayWorkers:
    """One Ray actor for each worker.

    The server stays in this process, and one thread of it speaks with all actors: a gradient arrives
    when that thread gets it. Parameters go to actors, and gradients come back, as NumPy
    arrays in Ray's object store, as do, once, the loss and the data. An actor that dies is
    started again by Ray; the gradient that it was computing is lost, and its batch is given away
    again.

    Args:
      problem: arguments of `Gradients`.
      num_workers: number of actors.
      sleep: function from a worker to the seconds that it sleeps before its next push.
      address: of a Ray cluster; "" starts Ray on this machine, if it is not running.
      cpus_per_worker: CPUs that Ray reserves for an actor.
      gpus_per_worker: likewise; without one an actor computes on the CPU.

    Raises:
      ImportError: when Ray is not installed.
    """

    def __init__(self, problem: tuple[Any, ...], num_workers: int, sleep: Callable[[int], float],
                 address: str = "", cpus_per_worker: float = 1.0, gpus_per_worker: float = 0.0):
        try:
            import ray
        except ImportError as error:
            raise ImportError("recorder='ray' needs the package ray: pip install 'asgd[ray]'") from error
        self._ray, self.sleep, self._num_workers = ray, sleep, num_workers
        self._address = address
        self._resources = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        self._problem = problem
        self._actors: list[Any] = []
        self._started_ray = False
        self._thread = self._stored = self._start = None

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-able dict for a trace's metadata."""
        return {"recorder": "ray", "ray": self._ray.__version__, **self._resources}

    def compile(self, params: Any, worker_states: Any) -> Sent:
        """Starts the actors and lets them compile; returns zeros."""
        ray = self._ray
        if not ray.is_initialized():
            options = {"address": self._address} if self._address else {
                # Workers of one machine may be more than its cores.
                "address": "local", "num_cpus": max(os.cpu_count() or 1, int(np.ceil(
                    self._num_workers * self._resources["num_cpus"])))}
            code = str(pathlib.Path(__file__).resolve().parents[1])
            with warnings.catch_warnings():
                # JAX warns of forks, but this one is followed by an exec.
                warnings.filterwarnings("ignore", message="os.fork")
                ray.init(**options, include_dashboard=False, log_to_driver=False,
                         logging_level=logging.ERROR,
                         runtime_env={"py_modules": [code]} if self._address else None)
            self._started_ray = True
        settings = {name: getattr(jax.config, name) for name in _SETTINGS}
        # Kept, as actors that are started again need it again.
        self._stored = ray.put((settings, self._problem))
        self._start = ray.put(jax.device_get((params, worker_states[0])))
        actor = ray.remote(max_restarts=-1, max_task_retries=0, **self._resources)(_Actor)
        self._actors = [actor.remote() for _ in range(self._num_workers)]
        ready = [self._ready(worker) for worker in range(self._num_workers)]
        if ray.wait(ready, num_returns=len(ready), timeout=60)[1]:
            log.warning("Still waiting for Ray to start %d actors, each with %s; `ray status` says what "
                        "it has", len(ready), self._resources)
        return ray.get(ready)[0]

    def processes(self) -> list[tuple[str, int]]:
        """Returns host and process id of every actor."""
        return self._ray.get([actor.process.options(max_task_retries=-1).remote()
                              for actor in self._actors])

    def start(self, server: Server) -> None:
        """Starts to give work to the actors, in a thread."""
        self._thread = threading.Thread(target=self._serve, args=(server,), daemon=True, name="ray")
        self._thread.start()

    def stop(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        if self._thread is not None:
            self._thread.join()
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started_ray:
            self._ray.shutdown()

    def _serve(self, server):
        """Gives work until the server is closed; results that are on the way then are lost."""
        ray, asked = self._ray, {}  # Reference: what was pulled, or the worker that starts again.
        try:
            for worker in range(self._num_workers):
                self._ask(asked, server.pull(worker))
            while not server.closed.is_set():
                for done in ray.wait(list(asked), num_returns=1, timeout=0.5)[0]:
                    pulled = asked.pop(done)
                    if isinstance(pulled, int):
                        ray.get(done)
                        self._ask(asked, server.pull(pulled))
                    else:
                        self._arrived(asked, server, pulled, done)
        except BaseException as error:
            server.fail(error)

    def _arrived(self, asked, server, pulled, done):
        errors = self._ray.exceptions
        try:
            self._ask(asked, server.push(pulled, self._ray.get(done)))
        except (errors.RayActorError, errors.ObjectLostError):
            log.warning("Worker %d died, and its gradient of batch %d is lost; Ray starts it again",
                        pulled.worker, pulled.batch)
            server.lost(pulled)
            asked[self._ready(pulled.worker)] = pulled.worker

    def _ask(self, asked, pulled):
        if pulled is not None:
            view = self._ray.put(jax.device_get((pulled.params, pulled.worker_state)))
            asked[self._actors[pulled.worker].gradient.remote(
                [self._stored], [view], pulled.batch, pulled.worker, self.sleep(pulled.worker))] = pulled

    def _ready(self, worker):
        """Returns a reference to zeros, which are there when the actor lives and has compiled."""
        method = self._actors[worker].gradient.options(max_task_retries=-1)
        return method.remote([self._stored], [self._start], 0, worker, 0.0, 0)


class _Actor:
    """The process of one worker; references come in lists, so that Ray does not follow them."""

    def __init__(self):
        self._gradients = None

    def gradient(self, stored, view, batch, worker, seconds, count=1) -> Sent:
        import ray

        if self._gradients is None:
            settings, arguments = ray.get(stored[0])
            for name, value in settings.items():
                jax.config.update(name, value)
            self._gradients = Gradients(*arguments)
        sent = self._gradients(*ray.get(view[0]), batch, worker, count=count)
        time.sleep(seconds)
        return Sent(*jax.device_get(tuple(sent)))

    def process(self) -> tuple[str, int]:
        return socket.gethostname(), os.getpid()

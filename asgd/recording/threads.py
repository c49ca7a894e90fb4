"""Workers that are threads of this process, each bound to a device."""

import os
import socket
import threading
from typing import Any, Callable

import jax

from asgd.recording.gradients import Gradients, Sent
from asgd.recording.server import Server


class ThreadWorkers:
    """One thread for each worker, which pulls, computes and pushes without waiting for the others.

    Args:
      gradients: what is computed.
      num_workers: number of threads; worker w computes on device w modulo their number. The
        server lives on device 0.
      devices: the devices.
      sleep: function from a worker to the seconds that it sleeps before its next push.
    """

    def __init__(self, gradients: Gradients, num_workers: int, devices: list[jax.Device],
                 sleep: Callable[[int], float]):
        self._gradients, self.sleep = gradients, sleep
        self._devices = [devices[w % len(devices)] for w in range(num_workers)]
        self._threads: list[threading.Thread] = []

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-able dict for a trace's metadata."""
        device = self._devices[0]
        return {"recorder": "threads", "devices": len(set(self._devices)),
                "device_kind": device.device_kind}

    def compile(self, params: Any, worker_states: Any) -> Sent:
        """Compiles for every device, so that no worker has to wait for it; returns zeros."""
        return [self._gradients(params, worker_states[0], 0, 0, device, count=0)
                for device in dict.fromkeys(self._devices)][0]

    def processes(self) -> list[tuple[str, int]]:
        """Returns host and process id of every worker."""
        return [(socket.gethostname(), os.getpid())] * len(self._devices)

    def start(self, server: Server) -> None:
        """Starts the threads."""
        self._threads = [threading.Thread(target=self._work, args=(server, w), daemon=True,
                                          name=f"worker {w}") for w in range(len(self._devices))]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Waits for the threads, which end when the server wants nothing any more."""
        for thread in self._threads:
            thread.join()

    def _work(self, server, worker):
        try:
            pulled = server.pull(worker)
            while pulled is not None:
                sent = self._gradients(pulled.params, pulled.worker_state, pulled.batch, worker,
                                       self._devices[worker])
                if (seconds := self.sleep(worker)) > 0:
                    server.closed.wait(seconds)
                pulled = server.push(pulled, sent)
        except BaseException as error:
            server.fail(error)

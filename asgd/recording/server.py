"""A real parameter server: applies gradients as they arrive, and writes down what happens."""

import threading
import time
from collections.abc import Collection
from typing import Any, Callable, NamedTuple, Optional

import jax
import numpy as np

from asgd.emulation.update import Held
from asgd.recording.gradients import Sent
from asgd.recording.log import Log


class State(NamedTuple):
    """The server between two arrivals.

    Attributes:
      count: gradients that have arrived.
      held: parameters, optimizer state and running statistics.
      worker_states: each worker's own, [num_workers].
    """

    count: Any
    held: Held
    worker_states: tuple[Any, ...]


class Pulled(NamedTuple):
    """What a worker reads: a snapshot and a batch's number."""

    worker: int
    batch: int
    version: int
    start_time: float
    params: Any
    worker_state: Any


class Arrival(NamedTuple):
    """What the server's transformation is told of a gradient."""

    staleness: Any
    worker: Any
    delay: Any
    update: Any


class Server:
    """Parameters that workers pull from and push to, whenever they like.

    A gradient is applied when it arrives, under a lock that is held only to give out a reference to
    the newest parameters (arrays never change), to start the update, and to write the row. Batches are
    given out in the order of pulls, lost ones first.

    Args:
      apply: ``apply(held, sent, stale_params, arrival) -> held``.
      state: where it starts.
      log: where rows go; it has as many as ``state`` has gradients.
      device: where the server lives.
      num_batches: batches there are, which then begin anew; or None.
      stops: numbers of gradients after which the state is kept for :meth:`wait`.

    Attributes:
      closed: set when no gradient is wanted any more.
    """

    def __init__(self, apply: Callable[..., Held], state: State, log: Log,
                 device: jax.Device, num_batches: Optional[int] = None,
                 stops: Collection[int] = ()):
        self._apply, self._state, self._log, self._device = apply, state, log, device
        self._stops, self._kept = frozenset(stops), {}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._failure: Optional[BaseException] = None
        self.closed = threading.Event()
        past = log.batch[:log.count]
        self._next = int(past.max(initial=-1)) + 1
        self._lost = np.setdiff1d(np.arange(self._next), past).tolist()
        self._num_batches = num_batches
        self._zero = time.perf_counter() - (log.finish_time[log.count - 1] if log.count else 0.0)

    def pull(self, worker: int) -> Optional[Pulled]:
        """Reads the newest parameters; None when no gradient is wanted any more."""
        with self._lock:
            return self._pull(worker)

    def push(self, pulled: Pulled, sent: Sent) -> Optional[Pulled]:
        """Applies a gradient and, in the same exchange, pulls again."""
        arrays = {"gradient": sent.gradient, "statistics": sent.statistics}
        sent = sent._replace(**jax.device_put(arrays, self._device))
        with self._lock:
            state, now = self._state, self._now()
            if self.closed.is_set():
                return None
            arrival = Arrival(
                np.int32(self._version(state.count) - pulled.version), np.int32(pulled.worker),
                np.float32(now - pulled.start_time), self._log.updates[state.count])
            held = self._apply(state.held, sent, pulled.params, arrival)
            workers = list(state.worker_states)
            workers[pulled.worker] = sent.worker_state
            self._state = state = State(state.count + 1, held, tuple(workers))
            self._log.append(pulled.worker, pulled.version, pulled.batch, pulled.start_time, now,
                             sent.loss)
            if state.count in self._stops:
                self._kept[state.count] = state
            if state.count == len(self._log):
                self.closed.set()
            self._arrived.notify_all()
            return self._pull(pulled.worker)

    def lost(self, pulled: Pulled) -> None:
        """Takes back a batch whose gradient will never arrive."""
        with self._lock:
            self._lost.append(pulled.batch)

    def fail(self, error: BaseException) -> None:
        """Stops: a worker cannot go on."""
        with self._lock:
            self._failure = self._failure or error
            self.closed.set()
            self._arrived.notify_all()

    def wait(self, stop: int) -> Optional[State]:
        """Waits until ``stop`` gradients have arrived.

        Returns:
          The state then, if ``stop`` is among the stops.

        Raises:
          BaseException: what a worker failed with.
        """
        with self._lock:
            while self._state.count < stop and self._failure is None:
                self._arrived.wait(timeout=1.0)
            if self._failure is not None:
                raise self._failure
            return self._kept.pop(stop, None)

    def close(self) -> None:
        """Wants no more gradients; what is being computed is lost."""
        with self._lock:
            self.closed.set()

    def _pull(self, worker):
        if self.closed.is_set():
            return None
        if self._lost:
            batch = self._lost.pop()
        else:
            batch, self._next = self._next, self._next + 1
        if self._num_batches is not None:
            batch %= self._num_batches
        state = self._state
        return Pulled(worker, batch, self._version(state.count), self._now(), state.held.params,
                      state.worker_states[worker])

    def _version(self, count):
        return count // self._log.gradients_per_update

    def _now(self):
        return time.perf_counter() - self._zero

"""SIGTERM: clusters send it before they take a machine away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was told to stop, and can go on later; exit code 143."""


class Interruption:
    """Listens for SIGTERM, and tells when all processes of the job are to stop.

    In a job of several processes JAX's own preemption service finds a call that all of them reach.
    """

    def __init__(self):
        self._heard, self._asked, self._before = False, 0, None
        self._listens = (jax.process_count() == 1
                         and threading.current_thread() is threading.main_thread())
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_):
        self._heard = True

    def __call__(self) -> bool:
        """Returns whether to stop now; all processes must ask equally often."""
        if jax.process_count() > 1 and not self._heard:
            self._asked += 1
            self._heard = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._heard

    def close(self) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

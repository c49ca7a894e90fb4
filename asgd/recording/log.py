"""What has arrived so far, in columns like those of a trace."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from asgd.cluster.checks import integer
from asgd.cluster.protocols import Asynchronous, KBatchAsync, Protocol, Softsync
from asgd.cluster.storage import COLUMNS
from asgd.cluster.trace import Trace

_NEVER_WAITING = (Asynchronous, Softsync, KBatchAsync)


class Log:
    """A trace that grows: arrays [T] of which the first `count` rows have happened.

    Where an update comes after every c gradients it is known beforehand when, so `version`,
    `updates` and `applied` are whole from the start; the other columns are filled by `append`.

    Args:
      protocol: whose workers never wait: `asynchronous`, `softsync` or `k_batch_async`.
      num_workers: number of workers.
      num_gradients: T.

    Raises:
      ValueError: for another protocol, or a number that is too small.

    Example:
      >>> from asgd.cluster import protocols
      >>> log = Log(protocols.asynchronous(), num_workers=2, num_gradients=3)
      >>> log.append(worker=1, read_version=0, batch=0, start_time=0.0, finish_time=0.5, loss=2.0)
      >>> log.trace().worker.tolist(), log.trace().finish_time.tolist()
      ([1], [0.5])
    """

    def __init__(self, protocol: Protocol, num_workers: int, num_gradients: int):
        num_workers = integer("num_workers", num_workers, least=1)
        num_gradients = integer("num_gradients", num_gradients, least=1, most=2**31 - 1)
        if not isinstance(protocol, _NEVER_WAITING) or getattr(protocol, "pull", "after") != "after":
            raise ValueError("protocol must be asynchronous, softsync or k_batch_async, with "
                             f"pull='after', got {protocol!r}: nobody waits in a recording")
        self.gradients_per_update = protocol.gradients_per_update(num_workers)
        self.num_workers, self.count = num_workers, 0
        self.metadata = {"protocol": protocol.describe()}
        events = np.arange(num_gradients)
        self.applied = np.ones(num_gradients, bool)
        self.updates = (events + 1) % self.gradients_per_update == 0
        self.version = (events // self.gradients_per_update).astype(np.int32)
        self.worker, self.read_version, self.batch = np.zeros((3, num_gradients), np.int32)
        self.start_time, self.finish_time = np.zeros((2, num_gradients))
        self.losses: Any = None  # Of the loss's own type.

    def __len__(self) -> int:
        return len(self.worker)

    def __str__(self) -> str:
        return str(self.trace()) if self.count else (
            f"{len(self)} gradients of {self.num_workers} workers, to be recorded")

    @property
    def num_updates(self) -> int:
        """How many updates there are when all has arrived."""
        return int(np.count_nonzero(self.updates))

    @property
    def staleness(self) -> np.ndarray:
        """int32 [T]: updates between reading and arrival."""
        return self.version - self.read_version

    def append(self, worker: int, read_version: int, batch: int, start_time: float,
               finish_time: float, loss: Any) -> None:
        """Writes the next row."""
        if self.losses is None:
            self.losses = np.zeros(len(self), np.asarray(loss).dtype)
        row = self.count
        self.worker[row], self.read_version[row], self.batch[row] = worker, read_version, batch
        self.start_time[row], self.finish_time[row] = start_time, finish_time
        self.losses[row] = loss
        self.count = row + 1  # At last: others look at the rows before it.

    def trace(self, stop: Optional[int] = None) -> Trace:
        """Returns what happened before event `stop`, by default so far."""
        stop = self.count if stop is None else stop
        return Trace(**dict(zip(COLUMNS, self.columns(stop), strict=True)),
                     num_workers=self.num_workers, metadata=self.metadata)

    def columns(self, stop: int) -> list[np.ndarray]:
        """Returns what happened before event `stop` as arrays [stop]."""
        return [getattr(self, name)[:stop].copy() for name in COLUMNS]

    def restore(self, columns: Sequence[np.ndarray]) -> None:
        """Goes back to what `columns` returned."""
        self.count = len(columns[0])
        for name, column in zip(COLUMNS, columns, strict=True):
            getattr(self, name)[:self.count] = column

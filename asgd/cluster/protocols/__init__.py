"""When the server updates, and when workers wait or are cancelled.

| protocol | an update after | workers wait | late workers |
|---|---|---|---|
| `asynchronous` | every gradient | never | are applied |
| `softsync`, `k_batch_async` | c gradients of any workers | never | are applied |
| `hardsync` | one gradient of every worker | for the last | there are none |
| `k_sync` | the first k workers' | for the k-th | are cancelled |
| `k_batch_sync` | k gradients of this version | never | are cancelled |
| `backup_workers` | all but `spare` workers' of this version | for the last | are dropped |
| `k_async` | k different workers' gradients | for the k-th | are applied |
| `ssp` | every gradient | when over s ahead of the slowest | are applied |
| `staleness_threshold` | every gradient, staleness <= s | never | are dropped or cancelled |

The gradient of a cancelled computation is no event; the worker's next computation takes its next
duration. A dropped gradient is an event with `applied=False`.

A protocol is a frozen dataclass derived from `Protocol`. It gets the cluster, from which it takes
the durations of each worker's cycles (`cluster.durations(worker, size)`) or, if what the server
does never changes when workers compute, all arrivals at once (`cluster.arrivals(num_gradients)`),
and returns the trace's columns. The others walk through the durations with an `EventQueue`.
"""

from asgd.cluster.protocols.base import Protocol
from asgd.cluster.protocols.between import (
    KAsync,
    Ssp,
    StalenessThreshold,
    k_async,
    ssp,
    staleness_threshold,
)
from asgd.cluster.protocols.never_waiting import (
    Asynchronous,
    KBatchAsync,
    Softsync,
    asynchronous,
    k_batch_async,
    softsync,
)
from asgd.cluster.protocols.synchronous import (
    BackupWorkers,
    Hardsync,
    KBatchSync,
    KSync,
    backup_workers,
    hardsync,
    k_batch_sync,
    k_sync,
)

__all__ = [
    "Protocol",
    "Asynchronous",
    "BackupWorkers",
    "Hardsync",
    "KAsync",
    "KBatchAsync",
    "KBatchSync",
    "KSync",
    "Softsync",
    "Ssp",
    "StalenessThreshold",
    "asynchronous",
    "backup_workers",
    "hardsync",
    "k_async",
    "k_batch_async",
    "k_batch_sync",
    "k_sync",
    "softsync",
    "ssp",
    "staleness_threshold",
]

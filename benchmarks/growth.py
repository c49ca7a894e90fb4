"""Seconds a gradient against workers, parameters and events, over the first row of each.

An MLP with one hidden layer; the snapshots of many workers do not fit in a cache, so that one
read comes from memory whoever makes it. `per_parameter` is over the first row as well.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import asgd
from benchmarks import measure, workloads
from benchmarks.setup import WORKERS, cluster_trace, emulation

DEVICES = (1,)


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    tables = {
        "workers": [(n, (n, (128,), 2048)) for n in (1, 4, 16, 64, 256, 1024)],
        "events": [(n, (WORKERS, (128,), n)) for n in (512, 2048, 8192)],
        "parameters": [(None, (WORKERS, (h,), 256)) for h in (128, 1258, 12579)],
    }
    for against, cases in tables.items():
        runs, counts = {}, {}
        for label, (workers, hidden, events) in cases:
            work = workloads.make("mlp", events, hidden)
            label = label or sum(p.size for p in jax.tree.leaves(work.params))
            _, runs[label] = emulation(work, asgd.average_until_update(optax.sgd(0.001)),
                                       cluster_trace(events, workers))
            counts[label] = events
        seconds = measure.interleaved(runs, options.repeats)
        first = next(iter(seconds))
        for label, times in seconds.items():
            ratios = times / counts[label] / (seconds[first] / counts[first])
            row = {"against": against, "value": label, **measure.spread(ratios)}
            if against == "parameters":
                row["per_parameter"] = round(float(np.median(ratios)) * first / label, 3)
            yield row


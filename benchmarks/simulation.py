"""Simulated events per second against workers and events, over the first row."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import asgd
from asgd.cluster import protocols, timing
from benchmarks import measure

DEVICES = (1,)
CASES = ((16, 10**5), (16, 10**6), (16, 10**7), (1_000, 10**7), (100_000, 10**6))


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    clock = timing.Timing(timing.gamma(1.0, 0.5))
    runs = {(workers, events): lambda w=workers, e=events: lambda: asgd.simulate(
        protocols.asynchronous(), clock, w, e, seed=0) for workers, events in CASES}
    seconds = measure.interleaved(runs, min(options.repeats, 3))
    first = seconds[CASES[0]] / CASES[0][1]
    for (workers, events), times in seconds.items():
        yield {"workers": workers, "events": events,
               "events_per_s": round(events / float(np.median(times))),
               **measure.spread(first / (times / events))}

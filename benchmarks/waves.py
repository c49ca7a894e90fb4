"""How full waves are: events over places, beside its upper bound for the trace.

No plan has fewer waves than the longest chain of events that read each other's versions, nor
fewer than events over width. The clusters have 16 workers.
"""

from collections.abc import Iterator
from typing import Any

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation.waves import plan_waves
from benchmarks.setup import WORKERS

DEVICES = (1,)
NUM_GRADIENTS = 20_000
CLUSTERS = {
    "constant": (protocols.asynchronous(), timing.constant(1.0), None),
    "gamma, cv 0.5": (protocols.asynchronous(), timing.gamma(1.0, 0.5), None),
    "exponential": (protocols.asynchronous(), timing.exponential(1.0), None),
    "gamma, one worker 8x faster": (
        protocols.asynchronous(), timing.gamma(1.0, 0.5), [1 / 8] + [1.0] * (WORKERS - 1)),
    "4-softsync, gamma": (protocols.softsync(4), timing.gamma(1.0, 0.5), None),
    "hardsync": (protocols.hardsync(), timing.gamma(1.0, 0.5), None),
}


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    del options
    for name, (protocol, compute, slowdown) in CLUSTERS.items():
        trace = asgd.simulate(protocol, timing.Timing(compute, slowdown=slowdown), WORKERS,
                              NUM_GRADIENTS, seed=0)
        longest = plan_waves(trace, len(trace)).num_waves
        row = {"cluster": name}
        for width in (1, 2, 4, 8, 16):
            plan = plan_waves(trace, width)
            bound = NUM_GRADIENTS / (width * max(longest, -(-NUM_GRADIENTS // width)))
            row[f"width {width}"] = f"{plan.utilization:.3f} of {bound:.3f}"
        yield row

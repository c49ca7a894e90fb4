"""The virtual cluster: timing x protocol -> `Trace`. NumPy only, JAX is never imported here.

Example:
    >>> from asgd import cluster
    >>> trace = cluster.simulate(
    ...     protocol=cluster.protocols.softsync(n=2),
    ...     timing=cluster.timing.gamma(mean=1.0, cv=0.5),
    ...     num_workers=8,
    ...     num_gradients=1000,
    ...     seed=0,
    ... )
    >>> len(trace), trace.num_updates
    (1000, 250)
"""

import importlib

from asgd.cluster import protocols, timing
from asgd.cluster.simulate import simulate
from asgd.cluster.timing import Timing
from asgd.cluster.trace import Trace

__all__ = ["Timing", "Trace", "graphs", "protocols", "schedules", "simulate", "timing"]


def __getattr__(name):
    if name in ("graphs", "schedules"):  # They import networkx, which few need.
        return importlib.import_module(f"asgd.cluster.{name}")
    raise AttributeError(f"module 'asgd.cluster' has no attribute {name!r}")

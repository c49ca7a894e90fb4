"""How long the workers of a virtual cluster compute and communicate, in virtual seconds.

`Timing` says how long each worker's cycles take, by distributions that are given or that `fit`
finds in a trace.
"""

from asgd.cluster.timing.cycles import Timing, as_timing
from asgd.cluster.timing.distributions import (
    NAMES,
    Distribution,
    constant,
    empirical,
    exponential,
    from_name,
    gamma,
    lognormal,
    pareto,
    shifted_exponential,
)
from asgd.cluster.timing.fitting import FittedTiming, WorkerFit, fit

__all__ = [
    "NAMES",
    "Distribution",
    "FittedTiming",
    "Timing",
    "WorkerFit",
    "as_timing",
    "constant",
    "empirical",
    "exponential",
    "fit",
    "from_name",
    "gamma",
    "lognormal",
    "pareto",
    "shifted_exponential",
]

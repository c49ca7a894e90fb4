r"""How fast a protocol updates, and how long its workers wait, for any distribution of times.

Formulas for P workers with independent times T, where they are known, and else a simulation. For the
policies of Dutta et al. 2018 ("Slow and stale gradients can win the race", arXiv 1803.01113), with
the harmonic numbers :math:`H_n` and exponential times of rate :math:`\mu`:

* K-sync: :math:`E[T_{K:P}]`, the K-th smallest of P; :math:`(H_P - H_{P-K}) / \mu`; hardsync has K = P;
* K-async: :math:`(H_P - H_{P-K}) / \mu` (exponential times only, which forget how long they ran);
* K-batch-sync: :math:`K / \sum_w \mu_w` (exponential times only, of any means);
* K-batch-async, softsync, asynchronous: :math:`c\, / \sum_w 1 / E[T_w]` for any times (renewal theorem).
"""

from typing import Any, NamedTuple

import numpy as np

from asgd.cluster import protocols, simulate
from asgd.cluster.checks import integer
from asgd.cluster.timing import as_timing
from asgd.theory import staleness, times


class Prediction(NamedTuple):
    """What a protocol does on a cluster in the long run.

    Attributes:
      num_workers: P.
      gradients_per_update: c.
      update_period: virtual seconds between two updates.
      mean_staleness: in updates, of the applied gradients.
      staleness_law: P(tau = k), [largest + 1].
      idle_fraction: of the workers' time, waiting for others.
      sources: for each of the above by name, what it comes from: a theorem or "simulation".
    """

    num_workers: int
    gradients_per_update: int
    update_period: float
    mean_staleness: float
    staleness_law: np.ndarray
    idle_fraction: float
    sources: dict[str, str]

    @property
    def updates_per_second(self) -> float:
        return 1 / self.update_period

    def __str__(self):
        return (f"{self.num_workers} workers, {self.gradients_per_update} gradients per update: "
                f"{self.updates_per_second:.4g} updates per virtual s, staleness "
                f"{self.mean_staleness:.4g} on average, {_quantile(self.staleness_law, 0.99)} at 99%, "
                f"idle {self.idle_fraction:.1%}")


def predict(protocol: Any, timing: Any, num_workers: int, *, num_gradients: int = 200_000,
            seed: int = 0, trace: Any = None) -> Prediction:
    """Predicts update period, staleness and idle time.

    Args:
      protocol: one of `asgd.cluster.protocols`.
      timing: a `Timing`, or a distribution of computing times. Its mean must be finite, which the
        distributions see to.
      num_workers: P.

    Other args:
      num_gradients: of the simulation, where one is needed.
      seed: of the simulation.
      trace: of this protocol and cluster, to be looked at instead of a new simulation.

    Raises:
      ValueError: if protocol, timing and number of workers do not fit.

    Example:
      >>> from asgd.cluster import protocols, timing
      >>> print(predict(protocols.softsync(n=2), timing.gamma(1.0, cv=0.5), 8))
      8 workers, 4 gradients per update: 2 updates per virtual s, staleness 1.75 on average, 5 at 99%, idle 0.0%
      >>> predict(protocols.hardsync(), timing.exponential(1.0), 4).update_period  # 1 + 1/2 + 1/3 + 1/4
      2.083333333333333
    """
    clock = as_timing(timing)
    integer("num_workers", num_workers, least=1)
    size = protocol.gradients_per_update(num_workers)
    period, source = _period(protocol, clock, num_workers, size)
    mean = staleness.mean_staleness(protocol, num_workers)
    law = staleness.exact_law(protocol, clock, num_workers, size)
    idle = _idle(protocol, clock, num_workers, period)
    sources = {"update_period": source, "mean_staleness": "Little's law", "staleness_law": "exact",
               "idle_fraction": "renewal theorem"}
    if None in (period, mean, idle) or law is None:
        if trace is None:
            trace = simulate(protocol, clock, num_workers, max(num_gradients, 20 * num_workers), seed)
        simulated = _in_trace(trace)
        known = {"update_period": period, "mean_staleness": mean, "idle_fraction": idle,
                 "staleness_law": law}
        for name, value in known.items():
            if value is None:
                known[name], sources[name] = simulated[name], "simulation"
        period, mean, idle, law = known.values()
    return Prediction(num_workers, size, float(period), float(mean), law, float(idle), sources)


def _period(protocol, clock, num_workers, size):
    if staleness.never_waiting(protocol):
        return size / np.sum(1 / clock.cycle_means(num_workers)), "renewal theorem"
    if isinstance(protocol, protocols.KBatchSync) and times.memoryless(clock, num_workers):
        return size / np.sum(1 / clock.cycle_means(num_workers)), "memoryless times"
    cycle = times.cycle(clock, num_workers)
    if cycle is not None and isinstance(protocol, (protocols.Hardsync, protocols.KSync)):
        return times.expected_order_statistic(cycle, size, num_workers), "order statistic"
    if (cycle is not None and cycle.name == "exponential"
            and isinstance(protocol, protocols.KAsync)):
        left = np.arange(num_workers - size + 1, num_workers + 1)
        return cycle.mean * np.sum(1 / left), "memoryless times"
    return None, "simulation"


def _idle(protocol, clock, num_workers, period):
    if staleness.never_waiting(protocol) or isinstance(protocol, protocols.KBatchSync):
        return 0.0
    if isinstance(protocol, protocols.Hardsync) and period is not None:
        return max(0.0, 1 - clock.cycle_means(num_workers).mean() / period)
    return None


def _in_trace(trace):
    first = len(trace) // 10
    seconds = trace.finish_time[-1] - trace.finish_time[first - 1]
    updates = np.count_nonzero(trace.updates[first:])
    if not updates or seconds <= 0:
        raise ValueError("the trace makes no updates")
    law = staleness.law_in_trace(trace)
    return {"update_period": seconds / updates, "mean_staleness": law @ np.arange(len(law)),
            "staleness_law": law,
            "idle_fraction": float(np.nanmean(trace.per_worker()["idle_fraction"]))}


def _quantile(law, probability):
    return int(np.searchsorted(np.cumsum(law), probability - 1e-12))

r"""How fast training is in virtual time, and how many workers are worth having.

The slowest mode of a quadratic with eigenvalues :math:`h_i` decays at the rate

.. math::
  r(M) = \frac{1}{\text{update period}(M)} \min_i \left(-\log \rho_M(\eta h_i)\right)

per virtual second, where :math:`\rho_M` is the spectral radius (`stability`) for a fixed staleness, and
else the decay on a simulated trace (`on_trace`). More workers update more often on staler parameters,
so there is a best number and one where it diverges. A natural model, derived here, of what Yu, Chen and Poor (arXiv 2406.11159) study.
"""

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from asgd.cluster import protocols as protocol_lib
from asgd.cluster.checks import integer, number
from asgd.theory import on_trace, run_time, stability


class Workers(NamedTuple):
    """What :func:`optimal_workers` finds.

    Attributes:
      best: number of workers with the highest rate.
      rate: that rate, per virtual second.
      first_diverging: smallest number that diverges, or None up to the most that were tried.
      num_workers: int [n], the numbers that were tried.
      rates: float64 [n], their rates; negative where it diverges.
    """

    best: int
    rate: float
    first_diverging: Optional[int]
    num_workers: np.ndarray
    rates: np.ndarray


def optimal_workers(step: float, eigenvalues: Sequence[float], timing: Any, *,
                    protocol: Optional[Callable[[int], Any]] = None, most: int = 1000,
                    momentum: float = 0.0, seed: int = 0) -> Workers:
    """Tries 1, 2, ... workers until it diverges, and returns the best.

    Args:
      step: learning rate, the same for all numbers of workers.
      eigenvalues: of the Hessian, all > 0.
      timing: a distribution of computing times, or a `Timing` without `slowdown`.

    Other args:
      protocol: function from the number of workers to a protocol; asynchronous by default.
      most: workers to try.
      momentum: heavy-ball momentum.
      seed: of the simulated traces.

    Example:
      >>> from asgd.cluster import timing
      >>> found = optimal_workers(0.02, [1.0], timing.constant(1.0))
      >>> found.best, round(found.rate, 3), found.first_diverging
      (19, 1.023, 80)
    """
    step = number("step", step, above=0.0)
    integer("most", most, least=1)
    values = sorted(float(h) for h in eigenvalues)
    if not values or values[0] <= 0:
        raise ValueError(f"eigenvalues must be positive, got {list(eigenvalues)!r}")
    protocol = protocol or (lambda _: protocol_lib.asynchronous())
    # Only the outermost can be the slowest or the first to diverge.
    values = sorted({values[0], values[-1]})
    numbers, rates, diverging = [], [], None
    for workers in range(1, most + 1):
        trace = on_trace.long_trace(protocol(workers), timing, workers, seed)
        prediction = run_time.predict(protocol(workers), timing, workers, trace=trace)
        law = prediction.staleness_law
        if np.count_nonzero(law) == 1:
            slowest = min(stability.answer(step * h, law, momentum).rate for h in values)
        else:
            slowest = on_trace.rates_on_trace(trace, step * np.asarray(values), momentum).min()
        rates.append(slowest / prediction.update_period)
        numbers.append(workers)
        if rates[-1] < 0:
            diverging = workers
            break
    best = int(np.argmax(rates))
    return Workers(numbers[best], rates[best], diverging, np.asarray(numbers), np.asarray(rates))

r"""Which protocol, how many workers, what learning rate: predicted time to a target loss.

The loss is taken as a quadratic with eigenvalues :math:`h_i`, of which each mode holds a part
:math:`e_i` of the excess over the minimum at the start, and a mini-batch's gradient has the variance
:math:`\sigma_i^2` along it. After k updates of c gradients each, at the learning rate :math:`\eta`,

.. math::
  E_k = \sum_i e_i\, \rho(\eta h_i)^{2k} + \sum_i \frac{\sigma_i^2}{2 h_i} V(\eta h_i)

with the decay :math:`\rho` of a mode on a simulated trace, and V the mean of :math:`x^2` that unit noise keeps
up on it (`on_trace`; for small steps, that of the mean iteration with the trace's staleness, which is
the same and has no sampling error). Time is k times the update period. The best step makes it shortest. All
of it is a model, derived here; a network's curvature changes while it is trained.
"""

import math
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from scipy import optimize

from asgd.cluster.checks import number
from asgd.theory import on_trace, run_time, stability

_STEPS = 40  # On the grid of learning rates, over four decades below the largest stable one.


class Problem(NamedTuple):
    """A quadratic to plan for.

    Attributes:
      eigenvalues: of the Hessian, float64 [n], > 0.
      excess: each mode's part of the loss over its minimum at the start, [n].
      noise: variance of one mini-batch's gradient along each mode, [n].
    """

    eigenvalues: np.ndarray
    excess: np.ndarray
    noise: np.ndarray


def make_problem(largest: float, smallest: float, *, excess: float = 1.0, noise: float = 0.0,
                 modes: int = 6) -> Problem:
    """Spaces modes geometrically between two eigenvalues, each with the same part of the excess.

    Args:
      largest: eigenvalue, > 0.
      smallest: eigenvalue, > 0.

    Other args:
      excess: loss over its minimum at the start.
      noise: variance of a mini-batch's gradient along the steepest mode; along the others it is
        smaller in proportion to the eigenvalue, as where the noise's covariance is like the Hessian.
      modes: how many, 1 if both eigenvalues are equal.

    Raises:
      ValueError: naming what is out of range.

    Example:
      >>> make_problem(4.0, 1.0, modes=3).eigenvalues.tolist()
      [4.0, 2.0, 1.0]
    """
    if not (math.isfinite(largest) and largest >= smallest > 0):
        raise ValueError("eigenvalues must be finite and positive, the largest at least the smallest, "
                         f"got {largest:g} and {smallest:g}")
    if not (math.isfinite(excess) and excess > 0):
        raise ValueError(f"excess must be a positive number, got {excess!r}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number of at least 0, got {noise!r}")
    modes = 1 if largest == smallest else max(2, modes)
    values = np.geomspace(largest, smallest, modes)
    return Problem(values, np.full(modes, excess / modes), noise * values / largest)


class Modes:
    """Rates and variances of the modes of a problem on one trace.

    Args:
      problem: the quadratic.
      trace: of the protocol on the cluster.
      momentum: heavy-ball momentum.
      scale: rule from staleness to factors on the learning rate.
    """

    def __init__(self, problem: Problem, trace: Any, momentum: float = 0.0,
                 scale: Optional[Callable] = None):
        self._problem, self._trace, self._momentum, self._scale = problem, trace, momentum, scale
        largest = problem.eigenvalues[0]
        self._limit = on_trace.critical_step_on_trace(trace, momentum, scale=scale)
        self.largest_step = self._limit / largest
        staleness = trace.staleness[trace.applied]
        law = np.bincount(staleness) / len(staleness)
        factors = np.ones(len(law)) if scale is None else np.asarray(scale(np.arange(len(law))))
        gradients_per_update = len(staleness) / trace.num_updates
        power = float(law @ factors**2) / gradients_per_update
        # One table of rates and variances serves every mode and learning rate.
        low = 1e-4 * problem.eigenvalues[-1] / largest
        self._grid = self._limit * np.concatenate(
            [np.geomspace(low, 0.05, 24, endpoint=False), np.linspace(0.05, 0.98, 32)])
        self._rates = on_trace.rates_on_trace(trace, self._grid, momentum, scale=scale)
        small = self._grid < 0.1 * self._limit
        self._variances = np.concatenate([
            [power * a**2 * _variance(stability.polynomial(a, law, momentum, scale=scale))
             for a in self._grid[small]],
            on_trace.noise_on_trace(trace, self._grid[~small], momentum, scale=scale)])

    def rates(self, step: float) -> np.ndarray:
        """Returns each mode's rate per update, [n]; where one diverges it is negative."""
        values = step * self._problem.eigenvalues
        # Over the step: nearly constant where steps are small.
        rates = np.interp(values, self._grid, self._rates / self._grid) * values
        beyond = values > self._grid[-1]
        if beyond.any():
            rates[beyond] = on_trace.rates_on_trace(
                self._trace, values[beyond], self._momentum, scale=self._scale)
        return rates

    def floor(self, step: float) -> float:
        """Returns the excess that noise keeps up."""
        values = step * self._problem.eigenvalues
        if values[0] >= self._limit:
            return math.inf
        # Over the step: nearly constant where steps are small.
        gains = np.interp(values, self._grid, self._variances / self._grid) * values
        return float(np.sum(self._problem.noise * gains / (2 * self._problem.eigenvalues)))

    def updates_to(self, target: float, step: float) -> float:
        """Returns the updates until the excess is below ``target``, or inf if it never is."""
        rates, excess = self.rates(step), self._problem.excess
        left = target - self.floor(step)
        if rates.min() <= 0 or left <= 0:
            return math.inf
        if excess.sum() <= left:
            return 0.0
        latest = max(1.0, math.log(excess.sum() / left) / (2 * rates.min()))
        return optimize.brentq(lambda k: np.sum(excess * np.exp(-2 * rates * k)) - left, 0, latest)

    def best_step(self, target: float) -> tuple[float, float]:
        """Returns the learning rate that is soonest below ``target``, and its updates."""
        steps = self.largest_step * np.geomspace(1e-4, 0.999, _STEPS)
        updates = [self.updates_to(target, step) for step in steps]
        best = int(np.argmin(updates))
        if not math.isfinite(updates[best]):
            return math.nan, math.inf
        low, high = np.log(steps[max(best - 1, 0)]), np.log(steps[min(best + 1, _STEPS - 1)])
        found = optimize.minimize_scalar(
            lambda x: min(self.updates_to(target, math.exp(x)), 1e300), bounds=(low, high),
            method="bounded", options={"xatol": 1e-3})
        better = found.fun < updates[best]
        return (math.exp(found.x), float(found.fun)) if better else (float(steps[best]), updates[best])


class Row(NamedTuple):
    """One protocol with one number of workers.

    Attributes:
      protocol: its name.
      workers: how many.
      updates_per_second: per virtual second.
      staleness_mean: in updates.
      staleness_99: its quantile of 99 %.
      idle_fraction: of the workers' time.
      largest_step: learning rate above which it diverges.
      best_step: learning rate that reaches the target first, or None if none does.
      time_to_target: virtual seconds with that, or None.
      verdict: "converges" or "diverges", at the learning rate that was asked about.
      rate: of its slowest mode, per virtual second; negative: the rate of the growth.
      time_at_rate: virtual seconds to the target at that learning rate, or None if it never is there.
    """

    protocol: str
    workers: int
    updates_per_second: float
    staleness_mean: float
    staleness_99: int
    idle_fraction: float
    largest_step: float
    best_step: Optional[float]
    time_to_target: Optional[float]
    verdict: str
    rate: float
    time_at_rate: Optional[float]


def plan(problem: Problem, protocols: dict[str, Callable[[int], Any]], timing: Callable[[int], Any],
         workers: Sequence[int], learning_rate: float, target: float, *, momentum: float = 0.0,
         scale: Optional[Callable] = None, seed: int = 0) -> list[Row]:
    """Predicts every protocol with every number of workers.

    Args:
      problem: the quadratic, from :func:`make_problem`.
      protocols: name -> function from the number of workers to a protocol.
      timing: function from the number of workers to a `Timing`.
      workers: numbers of workers.
      learning_rate: to be judged beside the best one.
      target: part of the excess at the start that is to be left, in (0, 1).

    Other args:
      momentum: heavy-ball momentum.
      scale: rule from staleness to factors on the learning rate, such as `asgd.inverse`.
      seed: of the simulated traces.

    Example:
      >>> from asgd.cluster import protocols, timing
      >>> row, = plan(make_problem(1.0, 0.1), {"asynchronous": lambda m: protocols.asynchronous()},
      ...             lambda m: timing.exponential(1.0), [8], 0.1, target=0.01)
      >>> row.staleness_mean, row.verdict, round(float(row.largest_step), 1)
      (7.0, 'converges', 0.7)
    """
    if not 0 < target < 1:
        raise ValueError(f"target must be in (0, 1), got {target!r}")
    learning_rate = number("learning_rate", learning_rate, above=0.0)
    rows = []
    wanted = target * float(problem.excess.sum())
    for name, make in protocols.items():
        for count in workers:
            protocol, clock = make(count), timing(count)
            trace = on_trace.long_trace(protocol, clock, count, seed)
            prediction = run_time.predict(protocol, clock, count, trace=trace)
            modes = Modes(problem, trace, momentum, scale)
            rows.append(_row(name, prediction, modes, learning_rate, wanted))
    return rows


def _row(name, prediction, modes, learning_rate, target):
    law, period = prediction.staleness_law, prediction.update_period
    step, updates = modes.best_step(target)
    rates = modes.rates(learning_rate)
    at_rate = modes.updates_to(target, learning_rate)
    return Row(
        name, prediction.num_workers, prediction.updates_per_second, prediction.mean_staleness,
        int(np.searchsorted(np.cumsum(law), 0.99 - 1e-12)), prediction.idle_fraction,
        modes.largest_step, _or_none(step), _or_none(updates * period),
        "converges" if rates.min() > 0 else "diverges", float(rates.min()) / period,
        _or_none(at_rate * period))


def _or_none(value):
    return float(value) if math.isfinite(value) else None


def _variance(polynomial):
    """Variance of the mean iteration under unit noise, by Parseval's theorem."""
    size = 1 << max(14, math.ceil(math.log2(16 * len(polynomial))))
    return float(np.mean(np.abs(np.fft.fft(polynomial, size)) ** -2.0))

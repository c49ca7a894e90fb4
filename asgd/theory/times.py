"""Quantiles and expectations of the times of `asgd.cluster.timing`."""

import collections
import functools
import math
from typing import Any

import numpy as np
from scipy import special, stats

from asgd.cluster import timing
from asgd.cluster.checks import integer, number
from asgd.cluster.timing import Distribution, Timing

_OCTAVES = 44  # Down to a probability of 2**-44, and 16 points in each halving of it.


def as_delay(delay: Any) -> Distribution:
    """Returns a delay as a distribution; a number >= 0 is a constant one."""
    return delay if isinstance(delay, Distribution) else timing.constant(number("delay", delay, least=0.0))


def upper_quantile(distribution: Distribution, probability: np.ndarray) -> np.ndarray:
    """Returns the times that are exceeded with a probability, float64 of its shape.

    Example:
      >>> upper_quantile(timing.exponential(2.0), np.exp([-1.0, -3.0])).tolist()
      [2.0, 6.0]
    """
    probability = np.asarray(probability, np.float64)
    p, mean = dict(distribution.parameters), distribution.mean
    match distribution.name:
        case "constant":
            return np.full(probability.shape, mean)
        case "exponential" | "shifted_exponential":
            shift = p.get("shift", 0.0)
            return shift - (mean - shift) * np.log(probability)
        case "gamma":
            return stats.gamma.isf(probability, p["cv"] ** -2, scale=mean * p["cv"] ** 2)
        case "lognormal":
            variance = math.log1p(p["cv"] ** 2)
            return stats.lognorm.isf(probability, variance**0.5, scale=mean * math.exp(-variance / 2))
        case "pareto":
            return mean * (p["shape"] - 1) / p["shape"] * probability ** (-1 / p["shape"])
        case "empirical":
            ordered = np.sort(distribution.samples)[::-1]
            return ordered[np.minimum((probability * len(ordered)).astype(int), len(ordered) - 1)]
    raise ValueError(f"no distribution has the name {distribution.name!r}")


def quadrature(distribution: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and weights with E[f(T)] = sum of weights times f(nodes).

    Gauss-Legendre in the probability, on intervals that halve towards both ends, so that heavy
    tails are followed far; measured times are their own nodes.
    """
    if distribution.name == "empirical":
        nodes, counts = np.unique(distribution.samples, return_counts=True)
        return nodes, counts / counts.sum()
    if distribution.name == "constant":
        return np.array([distribution.mean]), np.ones(1)
    probability, weights = _probabilities()
    return upper_quantile(distribution, probability), weights


@functools.cache
def _probabilities(octaves=_OCTAVES):
    points, weights = np.polynomial.legendre.leggauss(16)
    ends = np.concatenate([[0.0], 0.5 ** np.arange(octaves, 0.0, -1)])
    low, high = ends[:-1, None], ends[1:, None]
    half = ((low + high) / 2 + (high - low) / 2 * points).ravel()
    mass = ((high - low) / 2 * weights).ravel()
    return np.concatenate([half, 1 - half]), np.concatenate([mass, mass])


def kinds(clock: Timing, num_workers: int) -> dict[Timing, int]:
    """Returns the unlike workers of a cluster, each as the clock of one worker, and how many of each.

    Example:
      >>> found = kinds(Timing([timing.constant(1.0), timing.exponential(1.0)]), 5)
      >>> [(kind.compute.name, count) for kind, count in found.items()]
      [('constant', 3), ('exponential', 2)]
    """
    workers = zip(clock.distributions(num_workers), clock.slowdowns(num_workers).tolist())
    return {Timing(compute, clock.pull, clock.push, slowdown=[factor]): count
            for (compute, factor), count in collections.Counter(workers).items()}


def cycle(clock: Timing, num_workers: int) -> Distribution | None:
    """Returns the distribution of a cycle where all workers have the same, or None.

    None stands for unlike workers, and for transit times that are random.
    """
    alike = list(kinds(clock, num_workers))
    transit = [clock.pull, clock.push]
    if len(alike) > 1 or any(part.name != "constant" for part in transit):
        return None
    return _affine(alike[0].compute, alike[0].slowdown[0], sum(part.mean for part in transit))


def memoryless(clock: Timing, num_workers: int) -> bool:
    """Returns whether every worker's cycle is an exponential time, of whatever mean."""
    cycles = [cycle(kind, 1) for kind in kinds(clock, num_workers)]
    return all(whole is not None and whole.name == "exponential" for whole in cycles)


def expected_order_statistic(distribution: Distribution, k: int, num_workers: int) -> float:
    """Returns E[T_{k:P}], the mean of the k-th smallest of P independent times.

    With the exceedance probability of the k-th, Y ~ Beta(P - k + 1, k), it is E[F^{-1}(1 - Y)].

    Example:
      >>> round(expected_order_statistic(timing.exponential(1.0), 2, 3), 9)  # 1/3 + 1/2
      0.833333333
    """
    integer("num_workers", num_workers, least=1)
    integer("k", k, 1, num_workers)
    if distribution.name == "empirical":  # Steps: the probability of each is exact.
        ordered = np.sort(distribution.samples)
        below = stats.beta.cdf(np.arange(len(ordered) + 1) / len(ordered), k, num_workers - k + 1)
        return float(ordered @ np.diff(below))
    # Far enough for the mean of a tail that is just not infinite.
    probability, weights = _probabilities(1000)
    power = num_workers - k + 1
    # The far tail, where the power of the distribution function is left of it.
    exceeded = np.exp((np.log(np.maximum(probability, 1e-307)) + math.log(power)
                       + special.betaln(power, k)) / power)
    body = probability > 1e-13
    exceeded[body] = stats.beta.ppf(probability[body], power, k)
    exceeded = np.minimum(exceeded, 1.0)
    return float(upper_quantile(distribution, np.maximum(exceeded, 1e-300)) @ weights)


def _affine(distribution, factor, shift):
    if not shift:
        if factor == 1:
            return distribution
        if distribution.name == "empirical":
            return timing.empirical(factor * distribution.samples)
        p = dict(distribution.parameters)
        if "shift" in p:
            p["shift"] *= factor
        return Distribution(distribution.name, factor * distribution.mean, tuple(p.items()))
    if distribution.name == "constant":
        return timing.constant(factor * distribution.mean + shift)
    if distribution.name in ("exponential", "shifted_exponential"):
        first = dict(distribution.parameters).get("shift", 0.0)
        return timing.shifted_exponential(factor * first + shift, factor * distribution.mean + shift)
    if distribution.name == "empirical":
        return timing.empirical(factor * distribution.samples + shift)
    return None

"""Fits a cluster's `Timing` to the times of a trace, by maximum likelihood for each worker."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from asgd.cluster.timing import distributions as laws
from asgd.cluster.timing.cycles import Timing

_FEWEST = 10  # Times that a worker needs for a law of its own.
_NEVER_WAITING = ("asynchronous", "softsync", "k_batch_async")


class _Family(NamedTuple):
    """SciPy's name, what its fit holds, how many parameters AIC counts, our law of SciPy's."""

    scipy: str
    held: dict[str, float]
    count: int
    law: Callable[..., laws.Distribution]


_FROM_0 = {"floc": 0}
_FAMILIES = {
    "exponential": _Family("expon", _FROM_0, 1, lambda mean, *_: laws.exponential(mean)),
    "shifted_exponential": _Family(
        "expon", {}, 3, lambda mean, shift, _: laws.shifted_exponential(shift, mean)
    ),
    "gamma": _Family("gamma", _FROM_0, 2, lambda mean, shape, *_: laws.gamma(mean, shape**-0.5)),
    "lognormal": _Family(
        "lognorm", _FROM_0, 2, lambda mean, s, *_: laws.lognormal(mean, math.expm1(s**2) ** 0.5)
    ),
    "pareto": _Family("pareto", _FROM_0, 3, lambda mean, shape, *_: laws.pareto(mean, shape)),
}


class WorkerFit(NamedTuple):
    """The law of a worker's times and how well it fits them.

    Attributes:
        worker: Whose it is.
        distribution: The law.
        num_times: How many times it was fitted to.
        pooled: Whether these are all workers' times, each over its own worker's mean, since this
            one has fewer than 10. The law is scaled to the worker's mean (everybody's if it has none).
        log_likelihood: Sum of log f(t) over the times; inf for constant, None for empirical ones.
        aic: 2 k - 2 log_likelihood with k fitted parameters, likewise -inf or None. A least time
            (of shifted exponential and Pareto times) counts twice, as for it twice the logarithm
            of a likelihood ratio has two degrees of freedom, not one (Hogg 1956).
        ks_statistic: Kolmogorov and Smirnov's largest distance between the distribution functions
            of the times and of the law; None for empirical ones.
        p_value: Probability of such a distance by chance. Optimistic, that is too large, as the
            parameters were fitted to the same times; a small one still speaks against the law.
    """

    worker: int
    distribution: laws.Distribution
    num_times: int
    pooled: bool
    log_likelihood: float | None
    aic: float | None
    ks_statistic: float | None
    p_value: float | None


@dataclasses.dataclass(frozen=True)
class FittedTiming(Timing):
    """A `Timing` with one law for each worker, made by `fit`; it prints as a table.

    Attributes:
        fits: One `WorkerFit` for each worker of the trace.
    """

    fits: tuple[WorkerFit, ...] = ()

    def __str__(self) -> str:
        heads = ("worker", "times", "distribution", "mean", "parameter", "log-likelihood", "KS", "p")
        rows = [heads, *map(_row, self.fits)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = (2, 4)  # Columns that begin on the left.
        lines = (
            "  ".join(
                cell.ljust(widths[i]) if i in texts else cell.rjust(widths[i])
                for i, cell in enumerate(row)
            )
            for row in rows
        )
        return "\n".join(lines)


def _row(fit: WorkerFit) -> tuple[str, ...]:
    law = fit.distribution
    parameters = [f"{name} {x:.4g}" for name, x in law.parameters if isinstance(x, float)]
    measures = (fit.log_likelihood, fit.ks_statistic, fit.p_value)
    return (
        str(fit.worker),
        f"{'all ' * fit.pooled}{fit.num_times}",
        *(law.name, f"{law.mean:.4g}", " ".join(parameters)),
        *("-" if x is None else f"{x:.3g}" for x in measures),
    )


def fit(trace: Any, distributions: Sequence[str] = laws.NAMES) -> FittedTiming:
    """Makes a model of a cluster from a trace, to `simulate` more of it or other protocols on it.

    A worker's times t are taken as independent draws from one law. In each family the parameters
    maximise the likelihood, the product of f(t), and the family with the least AIC is taken.
    Transit is part of the times, so `pull` and `push` are 0.

    Where the metadata name a protocol whose workers never wait (asynchronous, softsync,
    k_batch_async), a time is that between two arrivals of a worker: read, computing, sending, and
    the gap before it reads again. But if that gap is longer than the worker's median gap plus half
    its median delay, a gradient was lost in it, or the worker restarted, and the time is that from
    start to arrival, as for a worker's first gradient. In any other trace workers may wait, and
    all times are those from start to arrival.

    Computations that were cancelled are no events, so where a protocol cancels, long times are
    missing. Laws repeat where there are more workers than in the trace: w has that of w modulo
    their number.

    Args:
        trace: A `Trace`. A worker with fewer than 10 times gets the law of all workers' times,
            each over its worker's mean, and the mean of its own.
        distributions: Families to choose from, among `NAMES`; or "empirical" alone, which
            resamples the measured times. "constant" is for times whose standard deviation is
            below 1e-6 of their mean. Laws of infinite mean (Pareto of shape <= 1) are left out,
            and gamma, lognormal and Pareto where a time is 0.

    Raises:
        ValueError: If the trace is empty, a worker's times are all 0, a name is unknown, or no
            family fits.

    Example:
        >>> from asgd.cluster import protocols, simulate, timing
        >>> source = timing.Timing([timing.gamma(1.0, cv=0.5), timing.pareto(3.0, shape=2.5)])
        >>> trace = simulate(protocols.asynchronous(), source, 2, 4000, seed=0)
        >>> fitted = timing.fit(trace)
        >>> print(fitted)
        worker  times  distribution   mean  parameter    log-likelihood      KS      p
             0   2990  gamma         1.005  cv 0.4976         -1.91e+03  0.0137  0.628
             1   1010  pareto        2.982  shape 2.523       -1.07e+03  0.0146   0.98
        >>> simulate(protocols.hardsync(), fitted, num_workers=4, num_gradients=100, seed=0)
        Trace(100 gradients, 4 workers, 25 updates)
    """
    names = (distributions,) if isinstance(distributions, str) else tuple(distributions)
    _check_names(names)
    if not len(trace):
        raise ValueError("trace must hold at least one gradient, but it is empty")
    times, everyones = list(_times(trace)), None
    fits = []
    for worker, own in enumerate(times):
        if len(own) >= _FEWEST:
            fits.append(WorkerFit(worker, *_best(own, names, f"worker {worker}", pooled=False)))
            continue
        if everyones is None:
            relative = [each / each.mean() for each in times if each.any()] or times
            everyones = _best(np.concatenate(relative), names, "all workers", pooled=True)
        law, *measures = everyones
        mean = own.mean() if own.any() else np.concatenate(times).mean()
        fits.append(WorkerFit(worker, laws.scaled(law, mean / law.mean), *measures))
    return FittedTiming(tuple(found.distribution for found in fits), fits=tuple(fits))


def _check_names(names):
    known = (*laws.NAMES, "empirical")
    for name in names:
        if name not in known:
            raise ValueError(f"distributions must be among {', '.join(known)}, not {name!r}")
    if not names:
        raise ValueError(f"distributions must name one of {', '.join(known)} or several")
    if "empirical" in names and len(names) > 1:
        raise ValueError("distributions: empirical has no likelihood to compare; give it alone")


def _times(trace) -> Iterator[np.ndarray]:
    """Yields the times of each worker."""
    protocol = trace.metadata.get("protocol")
    never_waits = isinstance(protocol, dict) and protocol.get("protocol") in _NEVER_WAITING
    order = np.argsort(trace.worker, kind="stable")
    ends = np.cumsum(np.bincount(trace.worker, minlength=trace.num_workers))
    for rows in np.split(order, ends[:-1]):
        start, finish = trace.start_time[rows], trace.finish_time[rows]
        times = finish - start
        if never_waits and len(rows) > 1:
            gaps = start[1:] - finish[:-1]
            usual = gaps <= np.median(gaps) + np.median(times) / 2
            times[1:] = np.where(usual, np.diff(finish), times[1:])
        yield times


def _best(times, names, whose, pooled):
    """Returns the fields of a `WorkerFit` after the first."""
    from scipy import stats  # Nothing else of the cluster's simulation needs SciPy.

    if not times.any():
        raise ValueError(f"trace: the times of {whose} are all 0, but some must be > 0")
    if "empirical" in names:
        return laws.empirical(times), len(times), pooled, None, None, None, None
    equal = times.std() <= 1e-6 * times.mean()
    if equal and "constant" in names:
        law = laws.constant(np.median(times))
        return law, len(times), pooled, math.inf, -math.inf, 0.0, 1.0
    found = []
    for name in names:
        positive = name in ("gamma", "lognormal", "pareto")
        if name == "constant" or (equal and name != "exponential") or (positive and not times.all()):
            continue
        family = _FAMILIES[name]
        theirs = getattr(stats, family.scipy)
        parameters = theirs.fit(times, **family.held)
        mean = theirs.mean(*parameters)
        if math.isfinite(mean):
            log_likelihood = float(theirs.logpdf(times, *parameters).sum())
            aic = 2 * family.count - 2 * log_likelihood
            law = family.law(mean, *parameters)
            found.append((aic, log_likelihood, law, theirs.cdf, parameters))
    if not found:
        raise ValueError(f"trace: none of {', '.join(names)} fits the {len(times)} times of {whose}")
    aic, log_likelihood, law, cdf, parameters = min(found, key=lambda each: each[0])
    distance = stats.kstest(times, cdf, args=parameters)
    measures = (log_likelihood, aic, float(distance.statistic), float(distance.pvalue))
    return law, len(times), pooled, *measures

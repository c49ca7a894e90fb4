"""Statistics of a trace: staleness, delay, throughput, idle and cancelled time. `Trace` methods."""

from typing import Any

import numpy as np

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


def _spread(values: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles and maximum; None each where there is nothing to measure."""
    if not len(values):
        return {"mean": None, "quantiles": {f"{q:g}": None for q in QUANTILES}, "max": None}
    quantiles = np.quantile(values, QUANTILES)
    return {
        "mean": float(values.mean()),
        "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
        "max": values.max().item(),
    }


def summary(trace) -> dict[str, Any]:
    """Returns the trace's statistics as a JSON-able dict.

    * `staleness`: mean, quantiles (0, .5, .9, .99, 1) and max over the applied gradients.
    * `delay`: the same of virtual seconds from read to arrival, over all gradients.
    * `gradients_per_second`, `updates_per_second`: arrivals and updates over the virtual time
      from the first start to the last arrival; None if that is 0.
    * `gradients`, `applied`, `updates`, `num_workers`: counts.
    * `idle_fraction`, `cancelled_fraction`: per worker, as in `per_worker`; None for workers
      without gradients.

    Example:
        >>> from asgd.cluster import Trace
        >>> trace = Trace(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2])
        >>> trace.summary()["staleness"]["mean"], trace.summary()["gradients_per_second"]
        (0.75, 1.0)
    """
    seconds = float(trace.finish_time[-1] - trace.start_time.min()) if len(trace) else 0.0
    by_worker = per_worker(trace)
    fractions = {
        name: [None if np.isnan(x) else x for x in by_worker[name].tolist()]
        for name in ("idle_fraction", "cancelled_fraction")
    }
    return {
        "gradients": len(trace),
        "applied": int(np.count_nonzero(trace.applied)),
        "updates": trace.num_updates,
        "num_workers": trace.num_workers,
        "staleness": _spread(trace.staleness[trace.applied]),
        "delay": _spread(trace.delay),
        "gradients_per_second": len(trace) / seconds if seconds else None,
        "updates_per_second": trace.num_updates / seconds if seconds else None,
        **fractions,
    }


def staleness_histogram(trace, worker: int | None = None) -> np.ndarray:
    """Counts the applied gradients of each staleness, int64 `[largest staleness + 1]`.

    Args:
        trace: The trace.
        worker: Counts this worker's gradients only. The length stays that of all workers', so
            the workers' histograms add up to the one of all.

    Raises:
        ValueError: If there is no such worker.

    Example:
        >>> from asgd.cluster import Trace
        >>> Trace(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2]).staleness_histogram().tolist()
        [1, 3]
    """
    if worker is not None and not 0 <= worker < trace.num_workers:
        raise ValueError(f"worker must be in [0, num_workers={trace.num_workers}), not {worker!r}")
    length = int(trace.staleness[trace.applied].max(initial=-1)) + 1
    counted = trace.applied if worker is None else trace.applied & (trace.worker == worker)
    return np.bincount(trace.staleness[counted], minlength=length)


def per_worker(trace) -> dict[str, np.ndarray]:
    """Returns statistics of each worker as arrays `[num_workers]`.

    * `gradients`, `applied`: int64, how many arrived and how many were applied.
    * `staleness`: float64, mean over its applied gradients, NaN without any.
    * `delay`: float64, mean virtual seconds over all its gradients, NaN without any.
    * `idle_fraction`: float64, the sum of the gaps between an arrival and the worker's next
      start, over the time from its first start to its last arrival; NaN without any gradient.
      Starts before the previous arrival count as no gap, and what comes after the last arrival
      is not counted.
    * `cancelled_fraction`: float64, time spent on computations that were cancelled, over the same
      time. They are no events but part of such gaps, and no idle time. Where the metadata say that
      the protocol cancels, a gap is idle until the next update if its workers wait for that, or
      not at all, and cancelled from then on. In any other trace, so in a log of a real cluster,
      nothing counts as cancelled and all of a gap as idle.

    Example:
        >>> from asgd.cluster import Trace
        >>> trace = Trace(worker=[0, 0], read_version=[0, 0], start_time=[0, 3], finish_time=[1, 4])
        >>> trace.per_worker()["idle_fraction"].tolist()
        [0.5]
    """
    count = trace.num_workers
    gradients = np.bincount(trace.worker, minlength=count)
    applied = np.bincount(trace.worker, weights=trace.applied, minlength=count).astype(np.int64)
    staleness = np.where(trace.applied, trace.staleness, 0)
    order = np.argsort(trace.worker, kind="stable")
    worker, start, finish = (x[order] for x in (trace.worker, trace.start_time, trace.finish_time))
    gaps = np.maximum(start[1:] - finish[:-1], 0) * (worker[1:] == worker[:-1])
    waits = gaps
    protocol = _cancelling(trace)
    if protocol is not None and protocol.get("waits"):
        next_update = np.append(trace.finish_time[trace.updates], np.inf)[trace.version[order]]
        waits = np.minimum(gaps, (next_update - finish)[:-1])
    elif protocol is not None:
        waits = np.zeros_like(gaps)
    idle, cancelled = (
        np.bincount(worker[1:], weights=x, minlength=count) for x in (waits, gaps - waits)
    )
    first, last = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(first, worker, start)
    np.maximum.at(last, worker, finish)
    seconds = np.where(gradients > 0, last - first, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "gradients": gradients,
            "applied": applied,
            "staleness": np.bincount(trace.worker, staleness, minlength=count) / applied,
            "delay": np.bincount(trace.worker, trace.delay, minlength=count) / gradients,
            "idle_fraction": np.where(seconds == 0, 0.0, idle / seconds),
            "cancelled_fraction": np.where(seconds == 0, 0.0, cancelled / seconds),
        }


def _cancelling(trace) -> dict[str, Any] | None:
    """What `Protocol.describe` says of the protocol, if that cancels computations, else None."""
    protocol = trace.metadata.get("protocol")
    return protocol if isinstance(protocol, dict) and protocol.get("cancels") else None


def describe(trace) -> str:
    """Returns a few lines of statistics for logs.

    Example:
        >>> from asgd.cluster import Trace
        >>> print(Trace(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2]).describe())
        trace: 4 gradients of 2 workers, 4 applied, 4 updates
        staleness (updates): mean 0.75, median 1, 99% 1, max 1
        delay (virtual s): mean 1.75, median 2, 99% 2, max 2
        throughput (per virtual s): 1 gradients, 1 updates
        idle: mean 0.0%, most 0.0%
    """
    s = summary(trace)
    lines = [
        f"trace: {s['gradients']} gradients of {s['num_workers']} workers, "
        f"{s['applied']} applied, {s['updates']} updates"
    ]
    for name, unit in (("staleness", "updates"), ("delay", "virtual s")):
        if s[name]["mean"] is not None:
            q = s[name]["quantiles"]
            lines.append(
                f"{name} ({unit}): mean {s[name]['mean']:.4g}, median {q['0.5']:.4g}, "
                f"99% {q['0.99']:.4g}, max {q['1']:.4g}"
            )
    if s["gradients_per_second"] is not None:
        rates = (s["gradients_per_second"], s["updates_per_second"])
        lines.append("throughput (per virtual s): {:.4g} gradients, {:.4g} updates".format(*rates))
    for name in ("idle", "cancelled"):
        shares = [share for share in s[f"{name}_fraction"] if share is not None]
        if shares and (name == "idle" or _cancelling(trace)):
            lines.append(f"{name}: mean {sum(shares) / len(shares):.1%}, most {max(shares):.1%}")
    return "\n".join(lines)

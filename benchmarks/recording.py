"""Real runs: do they replay, what writing them down costs, how like them a fitted simulation is.

``recordings`` of the same thing are ``different`` in who came when, and each is replayed on 1, 2 and 4
devices; ``same_bits`` counts replays that end with the parameters and losses of their recording.

``throughput_ratio`` is gradients per second while threads are recorded over those while the same threads
have neither clock nor log: blocks of 10 gradients of one run, drawn at random, medians and a bootstrap's 95 per
cent interval; ``log_microseconds`` is what
writing one row takes, and ``log_share`` that over the seconds between two gradients. ``staleness`` is the
mean of a recording, ``simulated`` that of as many gradients of a cluster with the times that
`asgd.cluster.timing.fit` found in it, ``distance`` the total variation between the two laws of staleness, and
``worst_worker`` the largest difference of a worker's mean, in per cent of it. Threads' sleeps are drawn with a mean of 20 ms; slow is one worker who sleeps 4 times as
long.

    python -m benchmarks --figures=recording
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import asgd
from asgd.cluster import protocols, timing
from asgd.recording import Log, Recorder, server
from asgd.workloads import datasets, models, sampling, task as task_lib

DEVICES = (4,)
WORKERS = 4
RECORDINGS = 10
BLOCK = 10
_SLOW = [1.0, 1.0, 1.0, 4.0]


class _Sometimes(Log):
    """Writes rows, or not, in blocks of gradients, at random; remembers when each block ended."""

    def __init__(self, *args):
        super().__init__(*args)
        self.losses = np.zeros(len(self))
        self.written = np.random.default_rng(0).random(len(self) // BLOCK + 1) < 0.5
        self.ends, self.on = [], self.written[0]

    def append(self, *row):
        if self.on:
            super().append(*row)
        else:
            self.count += 1
        if self.count % BLOCK == 0:
            self.ends.append(time.perf_counter())
            self.on = self.written[self.count // BLOCK]


class _SometimesClocked(server.Server):
    def _now(self):
        return super()._now() if self._log.on else 0.0


class _SometimesRecorded(Recorder):
    server_type = _SometimesClocked


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for model, gradients, recorder, workers in (
            ("mlp", 300, "threads", WORKERS), ("cnn", 100, "threads", WORKERS),
            ("mlp", 150, "ray", 3), ("cnn", 100, "ray", 3)):
        if model in options.models and (recorder == "threads" or _ray()):
            yield {"what": "replay", "model": model, "recorder": recorder, "workers": workers,
                   **_replays(model, gradients, recorder, workers)}
    for model, gradients in (("mlp", 30_000), ("cnn", 4000)):
        if model in options.models:
            yield {"what": "cost", "model": model, "recorder": "threads", "workers": WORKERS,
                   **_cost(model, gradients)}
    law = timing.gamma(0.02, cv=0.5)
    for name, sleep in (("none", None), ("equal", timing.Timing(law)),
                        ("slow", timing.Timing(law, slowdown=_SLOW))):
        yield _fitted("threads", WORKERS, name, sleep)
    if _ray():
        yield _fitted("ray", 3, "none", None)
        yield _fitted("ray", 3, "slow", timing.Timing(law, slowdown=_SLOW[1:]))


def _ray():
    """Starts Ray once for all; tells whether it is installed."""
    try:
        import ray
    except ImportError:
        return False
    if not ray.is_initialized():
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return True


def _problem(model):
    sizes = {"hidden": (256, 256)} if model == "mlp" else {}
    task = task_lib.make_task(datasets.load("digits"), models.create(model, 10, **sizes))
    batches = task.batches(sampling.EventSampler(task.num_examples, 32, 0))
    return task.loss_fn, asgd.staleness_aware_sgd(0.1), task.init(0)[0], batches


def _replays(model, gradients, recorder, workers):
    loss, tx, params, batches = _problem(model)
    orders, same = set(), 0
    for _ in range(RECORDINGS):
        real = asgd.record(loss, tx, params, batches, num_workers=workers, num_gradients=gradients,
                           recorder=recorder, num_devices=len(jax.devices()))
        orders.add(real.trace.worker.tobytes() + real.trace.batch.tobytes())
        for devices in (1, 2, 4):
            replay = asgd.emulate(loss, tx, params, real.trace, batches, num_devices=devices)
            same += _bits(replay) == _bits(real)
    return {"recordings": RECORDINGS, "different": len(orders), "replays": 3 * RECORDINGS,
            "same_bits": same}


def _bits(result):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves((result.params, result.losses))]


def _cost(model, gradients):
    log = _Sometimes(protocols.asynchronous(), WORKERS, gradients)
    run = _SometimesRecorded(*_problem(model), log, num_devices=len(jax.devices()))
    run.run(run.init())
    run.close()
    seconds, written = np.diff(log.ends), log.written[1:len(log.ends)]

    def ratio(rows):
        return np.median(seconds[rows][~written[rows]]) / np.median(seconds[rows][written[rows]])

    rng, count = np.random.default_rng(0), len(seconds)
    low, high = np.quantile([ratio(rng.integers(count, size=count)) for _ in range(1000)], [0.025, 0.975])
    log = Log(protocols.asynchronous(), WORKERS, 100_000)
    began = time.perf_counter()
    for event in range(len(log)):
        log.append(1, event, event, time.perf_counter(), time.perf_counter(), np.float32(1))
    row = (time.perf_counter() - began) / len(log)
    return {"blocks": count, "throughput_ratio": round(float(ratio(np.arange(count))), 3),
            "low": round(float(low), 3), "high": round(float(high), 3),
            "log_microseconds": round(1e6 * row, 2), "log_share": f"{row * BLOCK / np.median(seconds):.2%}"}


def _distance(one, other):
    """Total variation between two traces' staleness."""
    counts = [trace.staleness_histogram() / len(trace) for trace in (one, other)]
    length = max(map(len, counts))
    return float(sum(np.abs(np.diff([np.pad(c, (0, length - len(c))) for c in counts], axis=0))[0]) / 2)


def _fitted(recorder, workers, name, sleep):
    *problem, batches = _problem("mlp")
    real = asgd.record(*problem, batches, num_workers=workers, num_gradients=3000 if sleep is None else 1500,
                       recorder=recorder, num_devices=len(jax.devices()), sleep=sleep).trace
    fitted = timing.fit(real)
    model = asgd.simulate(protocols.asynchronous(), fitted, workers, len(real), seed=0)
    each = [trace.per_worker()["staleness"] for trace in (real, model)]
    speed = [trace.summary()["gradients_per_second"] for trace in (real, model)]
    return {"what": "fit", "model": "mlp", "recorder": recorder, "workers": workers, "sleep": name,
            "staleness": round(float(real.staleness.mean()), 3),
            "simulated": round(float(model.staleness.mean()), 3),
            "distance": round(_distance(real, model), 3),
            "worst_worker": round(100 * float(np.abs(each[1] / each[0] - 1).max()), 1),
            "gradients_per_second": round(speed[0], 1), "simulated_per_second": round(speed[1], 1),
            "laws": ", ".join(sorted({fit.distribution.name for fit in fitted.fits})),
            "largest_ks": round(max(fit.ks_statistic for fit in fitted.fits), 3)}

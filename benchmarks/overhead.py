"""Gradients per second of the emulation over those of synchronous SGD.

The synchronous loop is the fastest of one jitted call a step, a scan, and a scan unrolled four
times, with the same model, batches and momentum; with convolutions on CPU only the first, as XLA
runs them many times slower in a loop. `over_rewritten` compares with the faster of a step and a
scan whose convolutions are rewritten as the emulation's are. On several devices the synchronous
loop gathers parameters and scatters gradients, and `divided` is the ratio over the utilisation
of the trace's waves.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import asgd
from benchmarks import measure, synchronous, workloads
from benchmarks.setup import cluster_trace, emulation

DEVICES = (1, 4)
RATE = 0.001
_LOOPS = {"step": {}, "scan": {"scan": True}, "unrolled scan": {"scan": True, "unroll": 4}}
_REWRITTEN = {"step, rewritten": {"rewritten": True},
              "scan, rewritten": {"scan": True, "rewritten": True}}
_MORE = {"mlp": 2, "cnn": 4, "resnet20": 4, "transformer": 4}  # Gradients, on several devices.


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for name in options.models:
        for algorithm in options.algorithms:
            yield compare(name, algorithm, options.devices, options.repeats)


def compare(name: str, algorithm: str, devices: int, repeats: int) -> dict[str, Any]:
    """Measures one row."""
    work = workloads.make(name, workloads.GRADIENTS[name] * (1 if devices == 1 else _MORE[name]))
    trace = cluster_trace(work.num_gradients)
    if algorithm == "asgd":
        tx, synchronous_tx = asgd.average_until_update(optax.sgd(RATE)), optax.sgd(RATE)
    else:
        tx = asgd.dc_asgd_a(RATE, momentum=0.9, num_workers=trace.num_workers)
        synchronous_tx = optax.sgd(RATE, 0.9)
    emulator, prepare = emulation(work, tx, trace, num_devices=devices)
    runs = {"asgd": prepare}
    convolutions = name in ("cnn", "resnet20") and jax.default_backend() == "cpu"
    loops = {"step": {}, **_REWRITTEN} if convolutions else _LOOPS
    for loop, options in loops.items():
        runs[loop] = (synchronous.one_device(work, synchronous_tx, **options) if devices == 1 else
                      synchronous.sharded(work, synchronous_tx, devices, **options))
    seconds = measure.interleaved(runs, repeats)
    best = measure.fastest(seconds, [loop for loop in _LOOPS if loop in runs])
    ratios = seconds[best] / seconds["asgd"]
    row = {"model": name, "algorithm": algorithm, "devices": devices, **measure.spread(ratios),
           "divided": "", "utilization": "", "best_synchronous": best,
           "synchronous_per_s": round(work.num_gradients / np.median(seconds[best]), 1),
           "over_rewritten": ""}
    if devices > 1:
        row["utilization"] = round(emulator.plan.utilization, 3)
        row["divided"] = measure.spread(ratios / emulator.plan.utilization)["ratio"]
    if convolutions:
        rewritten = seconds[measure.fastest(seconds, list(_REWRITTEN))]
        row["over_rewritten"] = measure.spread(rewritten / seconds["asgd"])["ratio"]
    return row

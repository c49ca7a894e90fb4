"""Gradients per second of the emulation over those of synchronous SGD.

The synchronous loop is the faster of one jitted call a step and a scan, with the same model,
batches and momentum. On several devices it gathers parameters and scatters gradients, and the
emulation's rate is divided by the utilisation of the trace's waves (`undivided` is not).
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
_LOOPS = {"step": False, "scan": True}


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for name in options.models:
        for algorithm in options.algorithms:
            yield compare(name, algorithm, options.devices, options.repeats)


def compare(name: str, algorithm: str, devices: int, repeats: int) -> dict[str, Any]:
    """Measures one row."""
    work = workloads.make(name, workloads.GRADIENTS[name] * (1 if devices == 1 else 2))
    trace = cluster_trace(work.num_gradients)
    if algorithm == "asgd":
        tx, synchronous_tx = asgd.average_until_update(optax.sgd(RATE)), optax.sgd(RATE)
    else:
        tx = asgd.dc_asgd_a(RATE, momentum=0.9, num_workers=trace.num_workers)
        synchronous_tx = optax.sgd(RATE, 0.9)
    emulator, prepare = emulation(work, tx, trace, num_devices=devices)
    runs = {"asgd": prepare}
    for loop, scan in _LOOPS.items():
        # XLA runs convolutions inside loops many times slower on CPU.
        if scan and name in ("cnn", "resnet20") and jax.default_backend() == "cpu":
            continue
        runs[loop] = (synchronous.one_device(work, synchronous_tx, scan) if devices == 1 else
                      synchronous.sharded(work, synchronous_tx, devices, scan))
    seconds = measure.interleaved(runs, repeats)
    best = measure.fastest(seconds, [loop for loop in _LOOPS if loop in runs])
    utilization = emulator.plan.utilization if devices > 1 else 1.0
    ratios = seconds[best] / seconds["asgd"]
    return {"model": name, "algorithm": algorithm, "devices": devices,
            **measure.spread(ratios / utilization), "undivided": measure.spread(ratios)["ratio"],
            "utilization": round(utilization, 3), "best_synchronous": best,
            "synchronous_per_s": round(work.num_gradients / np.median(seconds[best]), 1)}

"""How far apart workers are, against the period and the number of workers.

An MLP 64-128-10 on scikit-learn's digits, rate 0.02, batches of 16, with samples drawn alike for
all workers or by label (a worker sees a few digits only); the median over the run of the
largest distance between two workers, right after a merge (delayed averaging, cyclic), or after as
many merges as there are workers (asynchronous SGD: every worker adds the sum of its ``period`` local
steps to the server alone, and goes on from the server's copy, as Downpour does).

    python -m benchmarks --figures=discrepancy
    python -m benchmarks.discrepancy runs/benchmarks.json benchmarks/discrepancy.png

The second command draws what the first has measured, with matplotlib.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import optax

import asgd
from asgd.cluster import averaging, timing
from asgd.emulation import IndexedBatches
from asgd.workloads import datasets, models, sampling, task as task_lib

DEVICES = (1,)
PERIODS = (1, 2, 4, 8, 16, 32)
WORKERS = (2, 4, 8, 16, 32, 64)
STEPS = 256  # Local steps of each worker.


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    del options
    dataset = datasets.load("digits")
    task = task_lib.make_task(dataset, models.create("mlp", 10, hidden=(128,)))
    params, _ = task.init(0)
    for workers, period in [(8, p) for p in PERIODS] + [(w, 8) for w in WORKERS if w != 8]:
        for data in ("alike", "by label"):
            labels = task.labels if data == "by label" else None
            sampler = sampling.AgentSampler(task.num_examples, 16, workers, 0, labels)
            row = {"data": data, "workers": workers, "period": period}
            for name, schedule in {
                    "delayed_averaging": averaging.cyclic(workers, STEPS, period),
                    "asgd": averaging.independent(
                        workers, workers * STEPS, period, timing.gamma(1.0, 0.5))}.items():
                result = asgd.emulate_averaging(
                    task.loss_fn, optax.sgd(0.02), params, IndexedBatches(
                        task.dataset.train, of_worker(sampler, schedule)), schedule=schedule)
                row[name] = round(float(np.median(result.discrepancy)), 4)
            yield row


def of_worker(sampler: sampling.AgentSampler, schedule: averaging.AveragingSchedule):
    """Returns a function from events to samples of the worker's own part."""
    order = np.argsort(schedule.worker, kind="stable")
    counts = np.bincount(schedule.worker, minlength=schedule.num_workers)
    step = np.empty(len(schedule), np.int64)
    step[order] = np.arange(len(schedule)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lambda events: sampler.indices(
        step[events] * schedule.num_workers + schedule.worker[events])


def draw(table: list[dict[str, Any]], path: str) -> None:
    """Draws both dependences."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for axis, name, other in zip(axes, ("period", "workers"), ("workers", "period")):
        for algorithm, label, color in (("asgd", "asynchronous SGD", "C3"),
                                        ("delayed_averaging", "delayed averaging", "C0")):
            for data, style in (("by label", "-"), ("alike", "--")):
                chosen = sorted((row for row in table if row[other] == 8 and row["data"] == data),
                                key=lambda row: row[name])
                axis.plot([row[name] for row in chosen], [row[algorithm] for row in chosen], style,
                          marker="o", color=color, label=f"{label}, data {data}")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel({"period": "period (8 workers)", "workers": "workers (period 8)"}[name])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("largest distance of two workers")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        draw(json.load(file)["discrepancy"], sys.argv[2])

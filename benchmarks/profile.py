"""What a gradient is spent on, from the profile of XLA's kernels, for models without convolutions.

Microseconds a gradient, on one device: the gradient itself, reading the snapshot and the batch,
writing into rings (on one core, as XLA does that), the worker's mean square, and the rest of the
update. ``parts`` is their sum and ``total`` the wall time of the same run without the profiler, both
of the fastest run. Of the transformer, whose kernels run side by side, it is the time on both cores, the
gradient is its matrix products alone, and all else of it is in ``arithmetic``.
"""

import collections
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import optax

import asgd
from benchmarks import workloads
from benchmarks.setup import WORKERS, cluster_trace, emulation

DEVICES = (1,)
MODELS = ("mlp", "transformer")
RATE = 0.001


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for model in [name for name in options.models if name in MODELS]:
        work = workloads.make(model, workloads.GRADIENTS[model])
        for name, tx in {
                "asgd": asgd.average_until_update(optax.sgd(RATE)),
                "asgd, momentum": asgd.average_until_update(optax.sgd(RATE, 0.9)),
                "dc_asgd_a, momentum": asgd.dc_asgd_a(
                    RATE, momentum=0.9, num_workers=WORKERS)}.items():
            yield {"model": model, "update": name, **_row(work, tx, options.repeats)}


def _row(work, tx, repeats):
    _, prepare = emulation(work, tx, cluster_trace(work.num_gradients))
    prepare()()
    seconds = []
    for _ in range(repeats):
        run = prepare()
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    scale = 1e6 / work.num_gradients
    fastest = min((profiled(prepare()) for _ in range(repeats)),
                  key=lambda parts: sum(parts.values()))
    parts = {k: round(v * scale) for k, v in fastest.items()}
    return {**parts, "parts": sum(parts.values()), "total": round(min(seconds) * scale)}


def profiled(run: Any) -> dict[str, float]:
    """Returns seconds by kind of kernel."""
    from jax.profiler import ProfileData

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        file, = pathlib.Path(folder).rglob("*.xplane.pb")
        lines = [line for plane in ProfileData.from_file(str(file)).planes
                 for line in plane.lines if "Eigen" in line.name]
        events = sorted((e.start_ns, -e.duration_ns, e.name, number)
                        for number, line in enumerate(lines) for e in line.events)
    totals = collections.Counter()
    for _, duration, name, _ in events:
        if name.startswith("while"):
            totals[name] -= duration
    gradient, longest = totals.most_common(1)[0]
    # Else it is many kernels, on all cores.
    whole = longest > 0.1 * sum(-d for _, d, name, _ in events if "::" not in name)
    out = dict.fromkeys(("gradient", "reads", "writes to rings", "mean square", "arithmetic"), 0.0)
    busy_until = collections.Counter()
    for start, duration, name, line in events:
        core = 0 if whole else line
        # What runs inside of a kernel that is counted.
        if start < busy_until[core] or "::" in name or (
                name.startswith("while") and not (whole and name == gradient)):
            continue
        product = not whole and name.startswith(("dot", "ynn"))
        kind = ("gradient" if product or name == gradient else
                "mean square" if name.startswith("cond") else
                "writes to rings" if "dynamic-update-slice" in name else
                "reads" if "dynamic-slice" in name else "arithmetic")
        out[kind] -= duration / 1e9
        busy_until[core] = start - duration
    return out

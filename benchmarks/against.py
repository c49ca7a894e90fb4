"""The emulation against event loops in plain JAX and PyTorch, on the same trace.

Ratios are gradients per second of the emulation over those of the loop; both have all cores. A
loop is only timed when it ends with the same parameters. XLA runs a convolution on one core, so
that two emulated devices use two cores better than one does.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

from benchmarks import event_loops, measure, workloads
from benchmarks.setup import cluster_trace, emulation

DEVICES = (1, 2)
TOLERANCE = 1e-4
CHECKED = 256  # Gradients after which parameters are compared.


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for name in options.models:
        if name != "transformer":
            for algorithm in options.algorithms:
                yield from compare(name, algorithm, options.devices, options.repeats)


def compare(name: str, algorithm: str, devices: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Measures a row for each loop."""
    loops = {"jax": event_loops.jax_loop}
    if importlib.util.find_spec("torch"):
        loops["torch"] = event_loops.torch_loop
    # Rounding differs, and training doubles differences: later it says nothing of the method.
    work, trace, emulator, prepare = _problem(
        name, algorithm, devices, min(CHECKED, workloads.GRADIENTS[name]))
    params = emulator.params(emulator.run(emulator.init())[0])
    moved = event_loops.largest_difference(params, work.params)
    differences = {}
    for loop, make in loops.items():
        differences[loop] = event_loops.largest_difference(
            params, make(work, trace, algorithm)()())
        if not differences[loop] <= TOLERANCE:
            raise ValueError(f"{loop} loop of {name}, {algorithm}: parameters differ by "
                             f"{differences[loop]:.2g}, more than {TOLERANCE}")

    work, trace, _, prepare = _problem(name, algorithm, devices, workloads.GRADIENTS[name])
    seconds = measure.interleaved(
        {"asgd": prepare, **{loop: make(work, trace, algorithm) for loop, make in loops.items()}},
        repeats)
    for loop, difference in differences.items():
        yield {"model": name, "algorithm": algorithm, "devices": devices, "loop": loop,
               **measure.spread(seconds[loop] / seconds["asgd"]),
               "difference": float(f"{difference:.1e}"), "moved": float(f"{moved:.1e}")}


def _problem(name, algorithm, devices, num_gradients):
    work = workloads.make(name, num_gradients)
    trace = cluster_trace(num_gradients)
    tx = event_loops.transformation(algorithm, trace.num_workers)
    return work, trace, *emulation(work, tx, trace, num_devices=devices)

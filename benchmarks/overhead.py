"""Gradients per second of the emulation over those of synchronous SGD.

    python -m benchmarks.overhead --devices=1
"""

import json

import jax
import optax
from absl import app, flags

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import Emulator
from benchmarks import measure, synchronous, workloads

_DEVICES = flags.DEFINE_integer("devices", 1, "Devices.")
_MODELS = flags.DEFINE_list("models", list(workloads.NAMES), "Models.")
_ALGORITHMS = flags.DEFINE_list("algorithms", ["asgd", "dc_asgd_a"], "Algorithms.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timings of each.")

WORKERS = 16
GRADIENTS = {"mlp": 1024, "cnn": 32, "resnet20": 8, "transformer": 8}
BATCH = {"transformer": 8}
_LOOPS = {"step": False, "scan": True}


def cluster_trace(num_gradients: int, workers: int = WORKERS) -> asgd.Trace:
    """Returns the trace that all figures use: gamma compute times, coefficient of variation 0.5."""
    clock = timing.Timing(timing.gamma(mean=1.0, cv=0.5))
    return asgd.simulate(protocols.asynchronous(), clock, workers, num_gradients, seed=0)


def transformations(algorithm: str, workers: int = WORKERS):
    """Returns the emulation's transformation, and the synchronous optimizer beside it."""
    if algorithm == "asgd":
        return asgd.average_until_update(optax.sgd(0.01)), optax.sgd(0.01)
    return (asgd.dc_asgd_a(0.01, momentum=0.9, num_workers=workers), optax.sgd(0.01, 0.9))


def emulation(work, tx, trace, **options):
    """Returns the emulator and a function that prepares a run of it."""
    emulator = Emulator(work.loss, tx, work.params, trace, work.batches,
                        model_state=work.model_state, **options)

    def prepare():
        state = jax.block_until_ready(emulator.init())
        return lambda: jax.block_until_ready(emulator.run(state)[0])

    return emulator, prepare


def compare(name: str, algorithm: str, devices: int, repeats: int):
    """Measures one row of the table."""
    work = workloads.make(name, GRADIENTS[name] * (1 if devices == 1 else 2),
                          BATCH.get(name, 32))
    num_gradients = len(jax.tree.leaves(work.batches)[0])
    tx, synchronous_tx = transformations(algorithm)
    emulator, prepare = emulation(work, tx, cluster_trace(num_gradients), num_devices=devices)
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
    return {"model": name, "algorithm": algorithm, "devices": devices,
            **measure.spread(seconds[best] / seconds["asgd"] / utilization),
            "utilization": round(utilization, 3), "best_synchronous": best,
            "synchronous_per_s": round(num_gradients / float(measure.np.median(seconds[best])), 1)}


def main(argv):
    del argv
    for name in _MODELS.value:
        for algorithm in _ALGORITHMS.value:
            print(json.dumps(compare(name, algorithm, _DEVICES.value, _REPEATS.value)),
                  flush=True)


if __name__ == "__main__":
    app.run(main)

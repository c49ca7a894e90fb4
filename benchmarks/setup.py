"""What several figures share: the trace, and an emulation to be timed."""

import jax

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import Emulator

WORKERS = 16


def cluster_trace(num_gradients: int, workers: int = WORKERS) -> asgd.Trace:
    """Returns the trace that all figures use: gamma compute times, coefficient of variation 0.5."""
    clock = timing.Timing(timing.gamma(mean=1.0, cv=0.5))
    return asgd.simulate(protocols.asynchronous(), clock, workers, num_gradients, seed=0)


def emulation(work, tx, trace, **options):
    """Returns the emulator of a workload, and a function that prepares a run of it."""
    emulator = Emulator(work.loss, tx, work.params, trace, work.batches,
                        model_state=work.model_state, **options)

    def prepare():
        state = jax.block_until_ready(emulator.init())
        return lambda: jax.block_until_ready(emulator.run(state)[0])

    return emulator, prepare

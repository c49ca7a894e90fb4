"""Where batches come from: gradients per second over those with rows that lie on the device.

MLP 784-256-256-10 at batch 32 on 8,192 made-up uint8 images, 6 MB. `gathered on the device` and
`gathered on the host` are :class:`asgd.IndexedBatches` that fit and that do not; the host gathers
for the next call while the devices work on this one.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import asgd
from benchmarks import measure, workloads
from benchmarks.setup import cluster_trace, emulation

DEVICES = (1,)
NUM_EXAMPLES = 8192


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    work = workloads.make("mlp", 1)
    num_gradients = workloads.GRADIENTS["mlp"]
    rng = np.random.default_rng(0)
    arrays = (rng.integers(0, 256, (NUM_EXAMPLES, 28, 28, 1), np.uint8),
              rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32))
    order = rng.integers(0, NUM_EXAMPLES, (num_gradients, 32))
    def indexed(on_device):
        return asgd.IndexedBatches(arrays, lambda events: order[events], on_device)

    sources = {"rows on the device": jax.tree.map(lambda x: x[order], arrays),
               "gathered on the device": indexed(True), "gathered on the host": indexed(False)}
    runs = {name: _prepare(work, batches) for name, batches in sources.items()}
    seconds = measure.interleaved(runs, options.repeats)
    first = seconds[next(iter(sources))]
    for name, times in seconds.items():
        yield {"batches": name, **measure.spread(first / times)}


def _prepare(work, batches):
    plain = work.loss

    def loss(params, batch):
        return plain(params, (batch[0].astype(np.float32) / 255.0, batch[1]))

    work = work._replace(loss=loss, batches=batches)
    return emulation(work, asgd.average_until_update(optax.sgd(0.001)),
                     cluster_trace(workloads.GRADIENTS["mlp"]))[1]

"""Bytes of snapshots on a device, against the plan and against a copy for every worker.

`temporary` is what the compiled program needs besides its arguments, as XLA tells it. MLP
784-256-256-10, asynchronous; `error` is the largest difference that snapshots in bfloat16 make
to the final parameters, over the largest distance that those moved.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asgd
from benchmarks import workloads
from benchmarks.setup import cluster_trace, emulation

DEVICES = (8,)
NUM_GRADIENTS = 512


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    work = workloads.make("mlp", NUM_GRADIENTS)
    size = sum(x.nbytes for x in jax.tree.leaves(work.params))
    tx = asgd.average_until_update(optax.sgd(0.01))
    for workers in (4, 16, 64):
        trace = cluster_trace(NUM_GRADIENTS, workers)
        exact = None
        for dtype in (None, jnp.bfloat16):
            for devices in (1, 2, 4, 8):
                if devices > options.devices or (dtype and devices > 1):
                    continue
                emulator, _ = emulation(work, tx, trace, num_devices=devices, snapshot_dtype=dtype)
                state = emulator.init()
                held = sum(leaf.addressable_shards[0].data.nbytes
                           for leaf in jax.tree.leaves(state.snapshots))
                shard = sum(-(-math.prod(x.shape) // devices) * (2 if dtype else 4)
                            for x in jax.tree.leaves(work.params))
                state, _ = emulator.run(state)
                params = emulator.params(state)
                exact = params if exact is None else exact
                moved = _difference(exact, work.params)
                yield {"workers": workers, "snapshots": "bfloat16" if dtype else "float32",
                       "devices": devices, "slots": emulator.plan.num_slots,
                       "held_MB": round(held / 1e6, 3),
                       "planned_MB": round(emulator.plan.num_slots * shard / 1e6, 3),
                       "over_worker_copies": round(held / (workers * size), 4),
                       "temporary_MB": round(emulator.temporary_bytes() / 1e6, 3),
                       "error": float(f"{_difference(params, exact) / moved:.1e}")}


def _difference(a, b):
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

"""Predicted and observed critical learning rate of an MLP 784-128-10 on MNIST.

The first 1,000 training images, the whole of them in every gradient, so that the Hessian of the loss
is the one that is measured. ``predicted`` is `asgd.theory.critical_step` over the largest eigenvalue at
the start, and the smallest tried multiple of it (steps of 2.5 per cent) at which the loss of an emulation with a
constant staleness rises by 0.01 in 400 turns of all workers is ``observed``. With an L2 term (0.01) the start is
its minimum. Without one (``l2`` 0) there is none: the loss goes on falling, and the curvature with it,
which ``eigenvalue_after`` shows, so larger rates are stable than the start's curvature says.

    python -m benchmarks --figures=critical --data_dir=DATA
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asgd
from asgd import theory
from asgd.cluster import protocols, timing
from asgd.workloads import datasets, models, task as task_lib

DEVICES = (1,)
STALENESS = (1, 4, 16)
EXAMPLES = 1000
TURNS = 400
MULTIPLES = np.arange(0.85, 1.66, 0.025)


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    try:
        dataset = datasets.load("mnist", options.data_dir or None)
    except datasets.DatasetNotPrepared as error:
        print(f"critical is left out: {error}", file=sys.stderr)
        return
    task = task_lib.make_task(dataset, models.create("mlp", 10, hidden=(128,)))
    batch = {name: jnp.asarray(array[:EXAMPLES]) for name, array in dataset.train.items()}
    for l2 in (0.01, 0.0):
        loss = functools.partial(_loss, task, l2)
        start, eigenvalue = _start(loss, task.init(0)[0], batch, 6000 if l2 else 500)
        for staleness in STALENESS:
            predicted = theory.critical_step(staleness) / eigenvalue
            low, high, after = 0, len(MULTIPLES) - 1, eigenvalue
            while low < high:
                middle = (low + high) // 2
                unstable, params = _unstable(loss, start, batch, staleness, predicted * MULTIPLES[middle])
                if unstable:
                    high = middle
                else:
                    low, after = middle + 1, _largest(loss, params, batch)
            found = MULTIPLES[low] if low < len(MULTIPLES) - 1 else np.inf
            yield {"l2": l2, "staleness": staleness, "eigenvalue": round(eigenvalue, 4),
                   "predicted": round(predicted, 5),
                   "observed": round(float(predicted * found), 5) if np.isfinite(found)
                   else f"above {predicted * MULTIPLES[-1]:.3g}",
                   "ratio": round(float(found), 3) if np.isfinite(found)
                   else f"above {MULTIPLES[-1]:.3g}",
                   "eigenvalue_after": round(after, 4)}


def _loss(task, l2, params, batch):
    return task.loss_fn(params, batch) + 0.5 * l2 * sum(
        jnp.vdot(x, x) for x in jax.tree.leaves(params))


def _start(loss, params, batch, steps):
    rate = 0.3
    params = jax.jit(lambda p: jax.lax.fori_loop(0, steps, lambda _, p: jax.tree.map(
        lambda x, g: x - rate * g, p, jax.grad(loss)(p, batch)), p))(params)
    return params, _largest(loss, params, batch)


def _largest(loss, params, batch):
    return float(theory.extreme_eigenvalues(loss, params, batch, tolerance=1e-3).largest[0])


def _unstable(loss, params, batch, staleness, rate):
    events = TURNS * (staleness + 1)
    trace = asgd.simulate(protocols.asynchronous(), timing.constant(1.0), staleness + 1, events, 0)
    rng = np.random.default_rng(0)  # Something to grow.
    params = jax.tree.map(lambda x: x + 1e-4 * rng.normal(size=x.shape).astype(x.dtype), params)
    try:
        result = asgd.emulate(loss, optax.sgd(rate), params, trace, asgd.IndexedBatches(
            batch, lambda events: np.tile(np.arange(EXAMPLES, dtype=np.int32), (len(events), 1))))
    except asgd.NonFiniteLossError:
        return True, None
    rise = result.losses.max() - result.losses[0]
    return bool(rise > 0.01), result.params

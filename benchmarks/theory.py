"""Theory over measurement: three claims about staleness, on a quadratic and on a network.

The quadratic has the eigenvalues 1 and 0.1. The network is an MLP 64-32-10 (tanh) on scikit-learn's
digits with an L2 term; emulations start a little away from a minimum, along the eigenvectors of its
largest and its 20th eigenvalue, from which alone the predictions are made ("little staleness": the
largest only). Measured is the rate at which the loss's excess over the minimum falls, per update or
virtual second, halved, as that of the distance; negative where it grows.

    python -m benchmarks --figures=theory
    python -m benchmarks.theory runs/benchmarks.json benchmarks/theory.png

The second command draws what the first has measured, with matplotlib.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import optimize

import asgd
from asgd import theory
from asgd.cluster import protocols, timing
from asgd.workloads import datasets

DEVICES = (1,)
WORKERS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64)
STALENESS = (0, 1, 2, 3, 4, 6, 8, 12)
UPDATES = 3000
L2 = 0.01


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    del options
    with jax.enable_x64(True):
        for problem, make in (("quadratic", _quadratic), ("network", _network)):
            loss, params, least, eigenvalues = make()
            for workers in WORKERS:
                # A rate that many workers make too large.
                yield _row("workers", problem, loss, params, least, eigenvalues,
                           0.04 / eigenvalues[0], workers, timing.gamma(1.0, cv=0.5))
            for claim, step in (("little staleness", 0.05), ("much staleness", 0.25)):
                for staleness in STALENESS:
                    yield _row(claim, problem, loss, params, least, eigenvalues,
                               step / eigenvalues[0], staleness + 1, timing.constant(1.0))


def _row(claim, problem, loss, params, least, eigenvalues, step, workers, times):
    """Predicts and measures one point; ``step`` is the learning rate."""
    updates = UPDATES * (1 + (claim == "workers"))
    trace = asgd.simulate(protocols.asynchronous(), times, workers, updates, seed=0)
    # The mode that lasts, or grows, is what is left at the end.
    modes = eigenvalues if claim != "little staleness" else eigenvalues[:1]
    per_second = workers if claim == "workers" else 1
    law = theory.staleness_law(protocols.asynchronous(), times, workers)
    rates = (theory.rates_on_trace(trace, step * np.asarray(modes)) if np.count_nonzero(law) > 1
             else [theory.answer(step * h, law).rate for h in modes])
    start = params[:1] if claim == "little staleness" else params
    start = jax.tree.map(lambda x, *moves: x + sum(moves), least, *start)
    result = asgd.emulate(loss, optax.sgd(step), start, trace, np.zeros((updates, 1)))
    return {"claim": claim, "problem": problem, "workers": workers, "staleness": workers - 1,
            "predicted": round(float(min(rates)) * per_second, 5),
            "measured": round(_rate(result.losses - float(loss(least, 0.0)),
                                    1e-13 if problem == "network" else 1e-250) * per_second, 5)}


def _rate(excess, rounding):
    """Half the slope of the excess's logarithm, where it is above rounding and still small."""
    end = len(excess)
    small = np.flatnonzero(np.abs(excess) < rounding)
    large = np.flatnonzero(excess > 1e-3)
    for stop in (small, large[large > 50]):
        if stop.size:
            end = min(end, int(stop[0]))
    first = end // 3
    # The largest of a stretch, as it oscillates.
    width = max(1, (end - first) // 12)
    peaks = [np.abs(excess[i : i + width]).max() for i in range(first, end - width + 1, width)]
    slope = np.polyfit(np.arange(len(peaks)) * width, np.log(peaks), 1)[0]
    return -slope / 2


def _quadratic():
    eigenvalues = jnp.array([1.0, 0.1])

    def loss(x, _):
        return 0.5 * jnp.sum(eigenvalues * x**2)

    return loss, [jnp.array([1e-3, 0.0]), jnp.array([0.0, 1e-3])], jnp.zeros(2), (1.0, 0.1)


def _network():
    train = datasets.load("digits").train
    images = jnp.asarray(train["image"][:500], jnp.float64).reshape(500, -1) / 255 - 0.3
    labels = jnp.asarray(train["label"][:500])

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(32, param_dtype=jnp.float64)(x))
            return nn.Dense(10, param_dtype=jnp.float64)(x)

    model = Mlp()

    def loss(params, _):
        logits = model.apply({"params": params}, images)
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 0.5 * L2 * sum(jnp.vdot(x, x) for x in jax.tree.leaves(params))

    params = model.init(jax.random.key(0), images)["params"]
    flat, tree = ravel_pytree(params)
    flat_loss = lambda x: loss(tree(x), 0.0)
    product = jax.jit(lambda x, v: jax.jvp(jax.grad(flat_loss), (x,), (v,))[1])
    # Trust regions leave saddles, where first-order methods stay for long.
    found = optimize.minimize(jax.jit(jax.value_and_grad(flat_loss)), flat, jac=True, hessp=product,
                              method="trust-krylov", options={"gtol": 1e-9, "maxiter": 1000})
    least = tree(jnp.asarray(found.x))
    found = theory.extreme_eigenvalues(loss, least, np.zeros(1), k=20, tolerance=1e-8,
                                       eigenvectors=True)
    moves = [jax.tree.map(lambda v: 1e-3 * jnp.asarray(v), found.largest_vectors[i]) for i in (0, -1)]
    return loss, moves, least, (float(found.largest[0]), float(found.largest[-1]))


def draw(table: list[dict[str, Any]], path: str) -> None:
    """Draws the three claims."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    titles = {"workers": "more workers do not always help",
              "little staleness": "a little staleness does not slow down",
              "much staleness": "much staleness diverges"}
    for axis, (claim, title) in zip(figure.subplots(1, 3), titles.items()):
        for color, problem in (("C0", "quadratic"), ("C3", "network")):
            chosen = [row for row in table if row["claim"] == claim and row["problem"] == problem]
            x = [row["workers" if claim == "workers" else "staleness"] for row in chosen]
            axis.plot(x, [row["predicted"] for row in chosen], color=color, label=f"{problem}, predicted")
            axis.plot(x, [row["measured"] for row in chosen], "o", color=color, mfc="none",
                      label=f"{problem}, measured")
        axis.axhline(0, color="gray", lw=0.8)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("workers" if claim == "workers" else "staleness (updates)")
        axis.set_ylabel("rate of convergence per " + (
            "virtual second" if claim == "workers" else "update"))
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        draw(json.load(file)["theory"], sys.argv[2])

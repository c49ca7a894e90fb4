"""The plain Python reference computes what the compiled programs compute, to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster.protocols import asynchronous, softsync
from asgd.cluster.timing import exponential

pytestmark = pytest.mark.usefixtures("x64")
EVENTS = 26


def trace_of(kind):
    if kind == "asynchronous":
        return asgd.simulate(asynchronous(), exponential(1.0), 5, EVENTS, seed=0)
    if kind == "softsync":
        return asgd.simulate(softsync(2), exponential(1.0), 5, EVENTS, seed=1)
    rng = np.random.default_rng(2)
    applied = rng.random(EVENTS) < 0.7
    updates = applied & (rng.random(EVENTS) < 0.7)
    version = np.cumsum(updates) - updates
    read = np.maximum(0, version - rng.integers(0, 4, EVENTS))
    return asgd.Trace(rng.integers(0, 5, EVENTS), read, applied=applied, updates=updates,
                      num_workers=5)


def loss_fn(params, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"])
    hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape)
    return jnp.mean((params["scale"] * (hidden @ params["out"]) - batch["y"]) ** 2)


def with_statistics(params, batch, key):
    return loss_fn(params, batch, key), {
        "mean": batch["x"].mean(0), "loss": loss_fn(params, batch, key)}


def emulate(trace, tx, **options):
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(3, 7)), "bias": rng.normal(size=7),
              "out": rng.normal(size=7), "scale": np.float64(0.7)}
    batches = {"x": rng.normal(size=(EVENTS, 4, 3)), "y": rng.normal(size=(EVENTS, 4))}
    statistics = {"mean": np.zeros(3), "loss": np.float64(1)}
    model_state = statistics if options.pop("statistics", False) else None
    return asgd.emulate(loss_fn if model_state is None else with_statistics, tx, params, trace,
                        batches, model_state=model_state, seed=3, **options)


def assert_agree(trace, tx, **options):
    want = emulate(trace, tx, backend="jit", **options)
    got = emulate(trace, tx, backend="debug", **options)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype == np.float64 and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12)
    return got


@pytest.mark.parametrize("kind", ["asynchronous", "softsync", "dropped"])
def test_traces(kind):
    assert_agree(trace_of(kind), asgd.staleness_aware_sgd(0.1, 0.9, weight_decay=1e-2))


def test_stale_parameters_and_workers():
    assert_agree(trace_of("dropped"), asgd.dc_asgd_a(0.05, momentum=0.9, num_workers=5))


@pytest.mark.parametrize("kind, worker_tx", [
    ("asynchronous", optax.trace(0.9)),
    ("dropped", optax.chain(optax.clip_by_global_norm(0.3), optax.scale_by_adam()))])
def test_workers_transformations(kind, worker_tx):
    plain = emulate(trace_of(kind), asgd.staleness_aware_sgd(0.1), backend="debug")
    got = assert_agree(trace_of(kind), asgd.staleness_aware_sgd(0.1), worker_tx=worker_tx)
    assert np.all(got.params["in"] != plain.params["in"])


def test_statistics():
    got = assert_agree(trace_of("dropped"), asgd.staleness_aware_sgd(0.1), statistics=True,
                       model_state_decay=0.8)
    # With s <- 0.8 s + 0.2 b over the applied gradients, in order, b being known.
    x = np.random.default_rng(0)
    for size in [(3, 7), 7, 7]:
        x.normal(size=size)
    x = x.normal(size=(EVENTS, 4, 3)).mean(1)
    want = np.zeros(3)
    for event in np.flatnonzero(trace_of("dropped").applied):
        want = 0.8 * want + 0.2 * x[event]
    np.testing.assert_allclose(got.model_state["mean"], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_what_reaches_the_transformation(backend):
    """A transformation that adds up what it is given, over the gradients that are applied."""
    trace = trace_of("dropped")

    def update_fn(updates, state, params=None, *, staleness, delay, worker, update, stale_params):
        del params, stale_params
        new = (staleness, worker, update.astype(int), delay.astype(float))
        return jnp.zeros_like(updates), jax.tree.map(jnp.add, state, new)

    tx = optax.GradientTransformationExtraArgs(
        lambda p: (*jnp.zeros(3, int), jnp.zeros(())), update_fn)
    emulator = asgd.emulation.make_emulator(
        lambda p, b: p * b, tx, jnp.ones(()), trace, np.ones(EVENTS), backend=backend)
    state, _ = emulator.run(emulator.init())
    state = state["opt_state"] if backend == "debug" else state.opt_state
    kept = trace.applied
    assert [int(x) for x in state[:3]] == [
        x[kept].sum() for x in (trace.staleness, trace.worker, trace.updates)]
    # Each delay is rounded to float32 once.
    np.testing.assert_allclose(float(state[3]), trace.delay[kept].sum(), rtol=1e-6)


def test_values_can_be_looked_at():
    """In the reference the loss and the transformation see numbers, not tracers of a program."""
    trace, seen = asgd.Trace([0, 1], [0, 0]), []

    def update_fn(updates, state, params=None, *, staleness, **extra):
        seen.append((float(updates), float(params), int(staleness)))
        return -updates, state

    tx = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update_fn)
    asgd.emulate(lambda p, b: 0.5 * p * p, tx, jnp.ones(()), trace, np.ones(2), backend="debug")
    assert seen == [(1.0, 1.0, 0), (1.0, 0.0, 1)]

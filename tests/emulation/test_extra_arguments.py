"""What the emulation passes to a transformation on each gradient, as a transformation sees it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing

WORKERS, EVENTS, START = 7, 54, 0.5
SCALARS = ("staleness", "worker", "delay", "update")
TREES = ("stale_params", "params", "gradient")


class RecorderState(NamedTuple):
    count: Any
    pending: Any


def recorder():
    """Writes what it is given on its k-th call to element k of one leaf of the parameters each.

    Element k of `x` grows by k + 1 on each update, so its value at any version is known.
    Written elementwise, as the sharded layout wants it.
    """

    def init_fn(params):
        return RecorderState(jnp.zeros([]), jax.tree.map(jnp.zeros_like, params["log"]))

    def update_fn(updates, state, params, *, stale_params, **extra_args):
        assert set(extra_args) == set(SCALARS)
        for name, dtype in zip(SCALARS, ("int32", "int32", "float32", "bool"), strict=True):
            assert extra_args[name].shape == () and extra_args[name].dtype == dtype
        seen = {**extra_args, "stale_params": stale_params["x"], "params": params["x"],
                "gradient": updates["x"]}
        here = params["index"] == state.count
        pending = jax.tree.map(
            lambda old, new: jnp.where(here, new, old), state.pending, seen)
        update = extra_args["update"]
        moves = {
            "x": jnp.where(update, params["index"] + 1, 0),
            "index": jnp.zeros_like(here, jnp.float32),
            "log": jax.tree.map(lambda p: jnp.where(update, p, 0), pending),
        }
        pending = jax.tree.map(lambda p: jnp.where(update, 0, p), pending)
        return moves, RecorderState(state.count + 1, pending)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _trace(name):
    cycle = timing.Timing(timing.exponential(1.0), pull=0.2, push=timing.gamma(0.1, 1.0),
                          slowdown=[1, 2, 1, 5, 1, 0.5, 3])
    if name == "asynchronous":
        return asgd.simulate(protocols.asynchronous(), cycle, WORKERS, EVENTS, seed=2)
    trace = asgd.simulate(protocols.softsync(3), cycle, WORKERS, EVENTS, seed=2)
    columns = {field: getattr(trace, field) for field in (
        "worker", "read_version", "updates", "start_time", "finish_time", "num_workers")}
    if name == "drops":
        columns["applied"] = trace.updates | (np.arange(EVENTS) % 3 > 0)
    return asgd.Trace(**columns)


@functools.cache
def _record(name, num_devices, layout):
    """Returns what the recorder saw, one row for each applied gradient, and the result."""
    index = jnp.arange(EVENTS, dtype=jnp.float32)
    params = {"x": jnp.full(EVENTS, START), "index": index,
              "log": {field: jnp.zeros(EVENTS) for field in SCALARS + TREES}}
    trace = _trace(name)
    assert trace.updates[-1] and trace.staleness.max() > 3
    result = asgd.emulate(lambda p, _: 0.5 * jnp.sum(p["x"] ** 2), recorder(), params, trace,
                          np.zeros(EVENTS), num_devices=num_devices, layout=layout)
    num_applied = np.count_nonzero(trace.applied)
    log = {field: np.asarray(x)[:num_applied] for field, x in result.params["log"].items()}
    return trace, log, result


CASES = [("asynchronous", 1, "sharded"), ("softsync", 4, "sharded"), ("drops", 4, "sharded"),
         ("drops", 4, "replicated")]
every_case = pytest.mark.parametrize("name, num_devices, layout", CASES)


@every_case
def test_scalars_are_those_of_the_trace(name, num_devices, layout):
    trace, log, _ = _record(name, num_devices, layout)
    expected = {
        "staleness": trace.version - trace.read_version,
        "worker": trace.worker,
        "delay": (trace.finish_time - trace.start_time).astype(np.float32),
        "update": trace.updates,
    }
    for field in SCALARS:
        np.testing.assert_array_equal(log[field], expected[field][trace.applied], field)


@every_case
def test_trees_are_those_of_their_versions(name, num_devices, layout):
    """`stale_params` is the snapshot of `read_version`, no alias of the current parameters."""
    trace, log, result = _record(name, num_devices, layout)
    growth = np.arange(1, np.count_nonzero(trace.applied) + 1)
    then = START + trace.read_version[trace.applied] * growth
    now = START + trace.version[trace.applied] * growth
    assert (then != now).any()
    np.testing.assert_array_equal(log["stale_params"], then)
    np.testing.assert_array_equal(log["gradient"], then)
    np.testing.assert_array_equal(log["params"], now)
    end = START + trace.num_updates * np.arange(1, EVENTS + 1)
    np.testing.assert_array_equal(result.params["x"], end)


@every_case
def test_losses_are_those_of_the_snapshots(name, num_devices, layout):
    trace, _, result = _record(name, num_devices, layout)
    x = START + trace.read_version[:, None] * np.arange(1, EVENTS + 1)
    # A sum of 54 squares in float32.
    np.testing.assert_allclose(result.losses, 0.5 * (x**2).sum(axis=1), rtol=54 * 2.0**-24)

"""Gradients that are not finite: dropped, and found."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import graphs, protocols, timing
from asgd.emulation import finite
from asgd.emulation.decentralized import GossipEmulator, make_gossip_tx
from asgd.emulation.emulate import Emulator
from asgd.emulation.local_steps import AveragingEmulator
from asgd.cluster import averaging, schedules

RATE, MOMENTUM = 0.125, 0.5


def loss(params, batch):
    # With c = 0 its loss is finite, and its gradient is not.
    return 0.5 * batch["b"] * params["w"]**2 + jnp.sqrt(batch["c"] * params["w"]**2)


def linear(params, batch):
    return batch * params["w"]


def reference(trace, b, c, per_update):
    """Plain Python: a dropped gradient changes nothing, and its version is that before it."""
    versions, momentum, kept = [1.0], 0.0, []
    for e in range(len(trace)):
        p = versions[trace.read_version[e]]
        if np.isfinite(b[e]) and c[e] > 0:
            kept.append(b[e] * p + c[e]**0.5 * np.sign(p))
        if not trace.updates[e]:
            continue
        now = versions[-1]
        # What was collected waits for the next update when the gradient that would make it is dropped.
        if np.isfinite(b[e]) and c[e] > 0:
            momentum = np.mean(kept) + MOMENTUM * momentum
            now, kept = now - RATE * momentum, []
        versions.append(now)
    return versions[-1]


@pytest.mark.parametrize("num_devices, layout", [(1, "sharded"), (4, "sharded"), (4, "replicated")])
@pytest.mark.parametrize("per_update", [1, 3])
def test_a_server_drops_them(x64, num_devices, layout, per_update):
    protocol = protocols.k_batch_async(per_update) if per_update > 1 else protocols.asynchronous()
    trace = asgd.simulate(protocol, timing.gamma(1.0, 0.7), 4, 36, 0)
    rng = np.random.default_rng(0)
    b, c = rng.uniform(0.1, 0.5, 36), np.full(36, 0.04)
    b[[3, 11]], b[14], c[[7, 20, 23]] = np.nan, np.inf, 0
    bad = np.zeros(36, bool)
    bad[[3, 7, 11, 14, 20, 23]] = True
    assert per_update == 1 or (bad & trace.updates).any() and (bad & ~trace.updates).any()
    tx = asgd.average_until_update(optax.sgd(RATE, MOMENTUM))
    result = asgd.emulate(loss, tx, {"w": jnp.array(1.0)}, trace, {"b": b, "c": c},
                          num_devices=num_devices, layout=layout, on_nonfinite="skip")
    np.testing.assert_allclose(result.params["w"], reference(trace, b, c, per_update), rtol=1e-13)
    np.testing.assert_array_equal(np.isnan(result.losses), bad)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_without_any_the_bits_are_the_same(num_devices):
    trace = asgd.simulate(protocols.softsync(2), timing.gamma(1.0, 0.7), 4, 30, 0)
    batches = np.random.default_rng(0).normal(size=(30, 5, 3)).astype(np.float32)

    def squares(params, batch):
        return jnp.square(jnp.tanh(batch @ params["w"]) - 0.3).mean()

    results = [asgd.emulate(squares, asgd.dc_asgd_a(0.3, 2.0, momentum=0.5, num_workers=4),
                            {"w": jnp.ones((3, 2))}, trace, batches, num_devices=num_devices,
                            on_nonfinite=what) for what in ("stop", "skip")]
    np.testing.assert_array_equal(*(r.params["w"] for r in results))
    np.testing.assert_array_equal(*(r.losses for r in results))


@pytest.mark.parametrize("num_devices", [1, 3])
def test_local_steps_are_not_taken_with_them(x64, num_devices):
    schedule = averaging.cyclic(3, 8, 4, delay=0)
    b = np.random.default_rng(0).normal(size=24)
    b[[2, 7, 13]] = np.nan
    emulator = AveragingEmulator(linear, optax.sgd(RATE), {"w": jnp.array(1.0)}, schedule, b,
                                 num_devices=num_devices, on_nonfinite="skip")
    state, losses = emulator.run(emulator.init())
    # All merges are of sums of gradients, so the server has the mean of all workers' sums.
    np.testing.assert_allclose(emulator.params(state)["w"], 1 - RATE * np.nansum(b) / 3, rtol=1e-13)
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(b))


@pytest.mark.parametrize("num_devices", [1, 3])
def test_agents_mix_without_them(x64, num_devices):
    schedule = schedules.constant(graphs.ring(3))
    b = np.random.default_rng(0).normal(size=24)
    b[[2, 7, 13]] = np.inf
    emulator = GossipEmulator(linear, make_gossip_tx(optax.sgd(RATE), "dsgd"), {"w": jnp.array(1.0)},
                              schedule, 8, b, num_devices=num_devices, on_nonfinite="skip")
    state, losses = emulator.run(emulator.init())
    # Mixing is doubly stochastic: it keeps the mean of the agents.
    mean = 1 - RATE * np.where(np.isfinite(b), b, 0).sum() / 3
    np.testing.assert_allclose(emulator.params(state)["w"].mean(), mean, rtol=1e-13)
    np.testing.assert_array_equal(np.isnan(losses), ~np.isfinite(b))


def test_statistics_of_agents_stay(x64):
    schedule = schedules.constant(graphs.ring(3))
    b = np.ones(6)
    b[4] = np.nan  # Agent 1 in round 1.

    def with_statistics(params, batch):
        return batch * params["w"], {"s": 0.3 * batch}

    emulator = GossipEmulator(with_statistics, make_gossip_tx(optax.sgd(RATE), "dsgd"),
                              {"w": jnp.array(1.0)}, schedule, 2, b, on_nonfinite="skip",
                              model_state={"s": jnp.array(0.1)}, model_state_decay=0.7)
    state, _ = emulator.run(emulator.init())
    once = 0.7 * 0.1 + (1 - 0.7) * 0.3
    twice = 0.7 * once + (1 - 0.7) * 0.3
    found = emulator.model_state(state)["s"]
    np.testing.assert_allclose(found, [twice, once, twice], rtol=1e-15)
    after_a_round, _ = emulator.run(emulator.init(), 0, 3)
    assert found[1] == emulator.model_state(after_a_round)["s"][1]


@pytest.mark.parametrize("num_devices, layout", [(1, "sharded"), (2, "sharded"), (2, "replicated")])
def test_watching_tells_event_and_leaf(num_devices, layout):
    trace = asgd.simulate(protocols.asynchronous(), timing.gamma(1.0, 0.7), 3, 12, 0)
    params = {"a": jnp.ones(3), "b": {"x": jnp.ones((2, 2)), "y": jnp.ones(2)}}
    scale = np.ones(12, np.float32)
    scale[7] = np.inf

    def some(params, batch):
        return params["a"].sum() + params["b"]["x"].sum() + batch * params["b"]["y"][1]

    emulator = Emulator(some, optax.sgd(0.1), params, trace, scale, num_devices=num_devices,
                        layout=layout, on_nonfinite="watch")
    state, losses, seen = emulator.observed(emulator.init())
    first_reader = np.flatnonzero(trace.read_version > 7)[0] if (trace.read_version > 7).any() else 12
    assert seen.shape == (12, 3)
    assert seen[:7].all() and not seen[7:, 2].any() and seen[:, :2].all()
    assert emulator.bad_leaf(seen[7]) == "['b']['y']" and emulator.bad_leaf(seen[6]) is None
    assert not emulator.finite(state).all()
    assert np.isfinite(losses[:7]).all() and not np.isfinite(losses[first_reader:first_reader + 1]).any()


def test_rows_and_options():
    rows = {"x": jnp.array([[1.0, 2.0], [np.inf, 0.0], [1.0, 1.0]]), "y": jnp.array([0.0, 0.0, np.nan]),
            "count": jnp.arange(3)}
    assert finite.finite_rows(rows).tolist() == [True, False, False]
    trace = asgd.Trace(worker=[0], read_version=[0])
    with pytest.raises(ValueError, match="on_nonfinite must be 'stop' or 'skip', got 'ignore'"):
        asgd.emulate(linear, optax.sgd(0.1), {"w": jnp.array(1.0)}, trace, np.ones(1),
                     on_nonfinite="ignore")
    with pytest.raises(ValueError, match="backend='debug'"):
        asgd.emulate(linear, optax.sgd(0.1), {"w": jnp.array(1.0)}, trace, np.ones(1), backend="debug",
                     on_nonfinite="skip")

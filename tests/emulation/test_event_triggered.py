"""Workers that push only large gradients: a plain loop, replays of the trace, special cases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing

EVENTS = 60


def arrivals(workers=5, length=EVENTS):
    return asgd.simulate(protocols.asynchronous(), timing.gamma(1.0, cv=0.7), workers, length, seed=2)


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EVENTS, 4, 3)).astype(np.float32)
    y = (x @ np.float32([1, -2, 3]))[..., None]

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)

    return loss, {"w": jnp.zeros((3, 1)), "b": jnp.zeros(())}, (x, y)


def same_bits(a, b):
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes()
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def by_hand(loss, params, trace, batches, threshold, rate, momentum):
    """One event after the other, with a worker's own copy of what it has read."""
    rate, velocity = jnp.float32(rate), jax.tree.map(jnp.zeros_like, params)
    read = {worker: (params, 0) for worker in range(trace.num_workers)}
    version, rows = 0, []
    for event, worker in enumerate(trace.worker.tolist()):
        mine, at = read[worker]
        grads = jax.grad(loss)(mine, jax.tree.map(lambda x: x[event], batches))
        pushed = float(optax.tree.norm(grads)) > threshold
        rows.append((at, version, pushed))
        if pushed:
            scale = 1 / max(version - at, 1)
            velocity = jax.tree.map(lambda v, g: momentum * v + scale * g, velocity, grads)
            params = jax.tree.map(lambda w, v: w - rate * v, params, velocity)
            version += 1
        read[worker] = params, version
    return params, rows


def test_a_plain_loop_makes_the_same_trace_and_parameters():
    loss, params, batches = problem()
    tx = asgd.staleness_aware_sgd(0.05, momentum=0.5)
    result = asgd.emulate_event_triggered(loss, tx, params, arrivals(), batches, threshold=4.0)
    expected, rows = by_hand(loss, params, arrivals(), batches, 4.0, 0.05, 0.5)
    read, version, pushed = map(list, zip(*rows))
    assert 10 < sum(pushed) < 50
    assert result.trace.applied.tolist() == result.trace.updates.tolist() == pushed
    assert result.trace.read_version.tolist() == read and result.trace.version.tolist() == version
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
                 result.params, expected)


@pytest.mark.parametrize("devices, layout", [(2, "sharded"), (4, "replicated")])
def test_the_trace_replays_to_the_same_bits(devices, layout):
    loss, params, batches = problem()
    tx = asgd.dc_asgd_a(0.02, strength=0.5, momentum=0.5, num_workers=5)
    one = asgd.emulate_event_triggered(loss, tx, params, arrivals(), batches, threshold=4.0)
    many = asgd.emulate_event_triggered(loss, tx, params, arrivals(), batches, threshold=4.0,
                                        num_devices=devices, layout=layout, waves_per_call=7)
    assert many.trace == one.trace and same_bits(one.params, many.params)
    assert same_bits(one.losses, many.losses)
    again = asgd.emulate(loss, tx, params, one.trace, batches, num_devices=devices, layout=layout)
    assert same_bits(again.params, one.params)
    assert same_bits(again.losses, one.losses)


def test_workers_keep_their_states_and_statistics_with_the_pushed_only():
    loss, params, batches = problem()
    tx, worker_tx = optax.sgd(0.02), optax.trace(0.5)

    def with_statistics(params, batch):
        return loss(params, batch), {"mean": batch[0].mean()}

    options = dict(worker_tx=worker_tx, model_state={"mean": jnp.zeros(())}, num_devices=2)
    result = asgd.emulate_event_triggered(with_statistics, tx, params, arrivals(), batches,
                                          threshold=5.0, **options)
    assert 5 < result.trace.num_updates < 55
    again = asgd.emulate(with_statistics, tx, params, result.trace, batches, **options)
    assert same_bits((again.params, again.model_state), (result.params, result.model_state))


def test_a_threshold_of_zero_is_asynchronous_and_a_huge_one_stands_still():
    loss, params, batches = problem()
    tx = optax.sgd(0.02)
    all_of_it = asgd.emulate_event_triggered(loss, tx, params, arrivals(), batches, threshold=0.0)
    plain = asgd.emulate(loss, tx, params, arrivals(), batches)
    assert same_bits((all_of_it.params, all_of_it.losses), (plain.params, plain.losses))
    mine = dataclasses.replace(all_of_it.trace, metadata=arrivals().metadata)
    assert mine == arrivals()
    none = asgd.emulate_event_triggered(loss, tx, params, arrivals(), batches, threshold=1e9)
    assert same_bits(none.params, params) and none.trace.num_updates == 0


@pytest.mark.parametrize("options, message", [
    ({"threshold": -1.0}, "threshold must be a number of at least 0, got -1.0"),
    ({"threshold": np.nan}, "threshold must be a number of at least 0, got nan"),
    ({"threshold": 1.0, "backend": "debug"}, "backend='debug' replays traces"),
    ({"threshold": 1.0, "arrivals": asgd.simulate(
        protocols.softsync(2), timing.constant(1.0), 4, EVENTS, 0)},
     "arrivals must have an update after every gradient.* none at row 0"),
])
def test_bad_input(options, message):
    loss, params, batches = problem()
    given = options.pop("arrivals", None) or arrivals()
    with pytest.raises(ValueError, match=message):
        asgd.emulate_event_triggered(loss, optax.sgd(0.1), params, given, batches, **options)

"""Batches reach the devices unchanged, from wherever they come."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import Emulator, feed

EVENTS, ROWS = 37, 11
TRACE = asgd.simulate(protocols.asynchronous(), timing.Timing(timing.gamma(1.0, 0.5)), 5, EVENTS,
                      seed=0)
DATA = {"x": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32),
        "y": np.random.default_rng(1).integers(0, 255, (ROWS, 2)).astype(np.uint8)}
INDICES = np.random.default_rng(2).integers(0, ROWS, (EVENTS, 4))
PARAMS = {"a": jnp.ones(3), "b": jnp.array([0.5, -0.5])}


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["a"] - batch["y"] / 255.0 @ params["b"]) ** 2)


def picked(events):
    return INDICES[events]


def emulator(batches, num_devices=1, **options):
    return Emulator(loss_fn, asgd.average_until_update(optax.sgd(0.1, 0.9)), PARAMS, TRACE, batches,
                    num_devices=num_devices, **options)


def outcome(batches, num_devices=1, **options):
    made = emulator(batches, num_devices, **options)
    state, losses = made.run(made.init())
    return jax.tree.leaves(made.params(state)) + [losses]


TREE = {name: array[INDICES] for name, array in DATA.items()}
SOURCES = {
    "rows": lambda: TREE,
    "rows on a device": lambda: jax.tree.map(jnp.asarray, TREE),
    "function": lambda: lambda events: {name: array[INDICES[events]]
                                        for name, array in DATA.items()},
    "indexed": lambda: asgd.IndexedBatches(DATA, picked),
    "indexed on a device": lambda: asgd.IndexedBatches(jax.tree.map(jnp.asarray, DATA), picked),
}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("num_devices, waves_per_call", [(1, 3), (4, 2)])
def test_all_sources_give_the_same_bits(num_devices, waves_per_call, fits, monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda *_: fits)
    results = [outcome(make(), num_devices, waves_per_call=waves_per_call)
               for make in SOURCES.values()]
    # What the numbers are is known from the events alone.
    first = loss_fn(PARAMS, jax.tree.map(lambda x: x[0], TREE))
    np.testing.assert_allclose(results[0][-1][0], first, rtol=1e-6)
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


ODD = {"scalar": np.linspace(0, 1, EVENTS, dtype=np.float32), "flag": np.arange(EVENTS) % 3 == 0,
       "none": np.zeros((EVENTS, 0, 5), np.float32), "number": np.arange(EVENTS, dtype=np.int16),
       "nested": (np.ones((EVENTS, 1, 3, 1), np.float32), {"deep": np.ones((EVENTS, 3), np.uint8)})}


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_leaves_of_any_shape(num_devices, on_device):
    def loss(params, batch):
        assert batch["scalar"].shape == () and batch["none"].shape == (0, 5)
        assert batch["flag"].dtype == bool and batch["number"].dtype == np.int16
        deep = batch["nested"][0].reshape(3) * batch["nested"][1]["deep"]
        return (params["a"] @ deep * batch["scalar"] * batch["number"] * batch["flag"]
                + batch["none"].sum())

    made = Emulator(loss, optax.sgd(0.0), PARAMS, TRACE,
                    asgd.IndexedBatches(ODD, lambda events: events, on_device),
                    num_devices=num_devices)
    _, losses = made.run(made.init())
    want = 3 * ODD["scalar"] * ODD["number"] * ODD["flag"]
    np.testing.assert_allclose(losses, want, rtol=1e-6)


@pytest.mark.parametrize("wrap", [
    lambda keys: {"key": keys}, lambda keys: lambda events: {"key": keys[:len(events)]},
    lambda keys: asgd.IndexedBatches({"key": keys}, lambda events: events)])
def test_typed_keys_are_refused(wrap):
    keys = jax.random.split(jax.random.key(0), EVENTS)
    with pytest.raises(ValueError, match=r"batches: \['key'\] holds typed keys"):
        Emulator(lambda p, b: p["a"].sum(), optax.sgd(0.1), PARAMS, TRACE, wrap(keys))


def test_parameters_without_elements():
    params = {"w": jnp.ones(3), "e": jnp.zeros((0, 3))}
    for options in (dict(), dict(num_devices=2, layout="replicated")):
        asgd.emulate(lambda p, b: (p["w"] * b).sum(), optax.sgd(0.1), params, TRACE,
                     np.ones(EVENTS), **options)
    with pytest.raises(ValueError, match=r"params: \['e'\] has no elements"):
        asgd.emulate(lambda p, b: p["w"].sum(), optax.sgd(0.1), params, TRACE, np.ones(EVENTS),
                     num_devices=2)


def test_a_data_set_that_fits_lies_on_every_device_once():
    data = emulator(asgd.IndexedBatches(DATA, picked), num_devices=4)._feed.data
    assert data["y"].dtype == np.uint8
    assert [s.data.shape for s in data["x"].addressable_shards] == [(ROWS, 3)] * 4


def test_what_does_not_fit_stays_on_the_host(monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda *_: False)
    assert emulator(asgd.IndexedBatches(DATA, picked))._feed.data == ()


@pytest.mark.parametrize("on_device", [True, False])
def test_the_user_decides(on_device, monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda *_: not on_device)
    made = emulator(asgd.IndexedBatches(DATA, picked, on_device))
    assert (made._feed.data != ()) == on_device


def test_devices_that_share_memory_share_the_limit():
    assert feed._fits(2**28, 8)
    assert not feed._fits(2**28 + 1, 8)


@pytest.mark.parametrize("indices", [
    lambda e: INDICES[e] + 1, lambda e: INDICES[e] - 1, lambda e: INDICES[e] * 1.0,
    lambda e: INDICES[:3]], ids=["too large", "negative", "no integers", "too few"])
def test_bad_indices(indices):
    made = emulator(asgd.IndexedBatches(DATA, lambda e: picked(e) if len(e) == 1 else indices(e)))
    with pytest.raises(ValueError, match="batches: indices must return one row for each event, of "
                                         "integers from 0 to 10"):
        made.run(made.init())


def test_arrays_of_different_length():
    with pytest.raises(ValueError, match=r"one leading axis \[N\] in common, got \[\(2,\), \(3,\)"):
        asgd.IndexedBatches((np.zeros(3), np.zeros(2)), picked)
    with pytest.raises(ValueError, match="one leading axis"):
        asgd.IndexedBatches(np.float32(0), picked)


@pytest.mark.parametrize("options", [
    dict(), dict(num_devices=4), dict(waves_per_call=2), dict(backend="debug")], ids=str)
def test_a_loss_without_data(options):
    """f = p^2 / 2, one scalar that no device can split: the gradients are the snapshots."""
    trace = asgd.Trace([0, 1, 0], [0, 0, 1])
    got = asgd.emulate(lambda p, batch: 0.5 * p * p, optax.sgd(0.5), jnp.float32(1.0), trace, None,
                       **options)
    assert float(got.params) == -0.25
    assert got.losses.tolist() == [0.5, 0.5, 0.125]


def test_a_process_reads_what_its_own_devices_need():
    """As if the last two of four devices were those of this process."""
    trace = asgd.simulate(protocols.softsync(2), timing.gamma(1.0, 0.5), 8, 40, 0)
    asked, expected = [], []

    class Batches:
        def __call__(self, numbers):
            asked.append(numbers)
            return numbers.astype(np.float32)

        def expect(self, numbers):
            expected.append(numbers)

    emulator = Emulator(lambda p, b: p * b, asgd.average_until_update(optax.sgd(0.1)), jnp.float32(1),
                        trace, Batches(), num_devices=4, waves_per_call=3)
    asked.clear()
    emulator._spmd.local = slice(2, 4)
    emulator._spmd.put_local = lambda rows: rows
    first, mine = emulator.plan.first, []
    for wave in range(emulator.plan.num_waves):
        mine += list(range(first[wave], first[wave + 1]))[2:4]
    assert len(mine) <= 40 / 2 and emulator._own_events(0).tolist() == mine
    begin = emulator.plan.num_waves // 2
    assert emulator._own_events(begin).tolist() == [e for e in mine if e >= first[begin]]
    for wave in range(0, emulator.plan.num_waves, 3):
        _, taken, rows, _ = emulator._prepare(wave, min(wave + 3, emulator.plan.num_waves))
        # Device by device, wave by wave; places that are not taken hold anything.
        places = np.flatnonzero(taken[:, 2:].T.ravel())
        wanted = [first[min(wave + i, len(first) - 1)] + 2 + d for d in range(2) for i in range(3)
                  if taken[i, 2 + d]]
        assert rows[places].tolist() == wanted
    read = np.concatenate(asked)
    assert set(mine) <= set(read.tolist()) and len(read) <= len(mine) + len(asked)
    assert emulator._feed.reads_ahead and not expected


def test_batches_are_told_once_what_will_be_asked_for():
    trace = asgd.simulate(protocols.asynchronous(), timing.gamma(1.0, 0.5), 4, 20, 0)
    expected = []

    class Batches:
        def __call__(self, numbers):
            return numbers.astype(np.float32)

        def expect(self, numbers):
            expected.append(numbers.tolist())

    emulator = Emulator(lambda p, b: p * b, optax.sgd(0.1), jnp.float32(1), trace, Batches(), cuts=[8])
    state, _ = emulator.run(emulator.init(), 0, 8)
    emulator.run(state, 8, 20)
    assert expected == [list(range(20))]
    emulator.run(emulator.init(), 8, 20)
    assert expected == [list(range(20)), list(range(8, 20))]

"""The wave loop compiles once, moves nothing between host and device, and copies no ring."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import Emulator
from asgd.emulation.spmd import WHOLE

PARAMS = {"w": jnp.ones((64, 64)), "b": jnp.zeros(64)}
PARAMS_BYTES = 4 * (64 * 64 + 64)


def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"]) ** 2)


def make(num_workers=8, num_events=60, algorithm="asgd", batches=None, **options):
    trace = asgd.simulate(protocols.asynchronous(), timing.Timing(timing.gamma(1.0, 0.5)),
                          num_workers, num_events, seed=0)
    tx = (asgd.average_until_update(optax.sgd(1e-3)) if algorithm == "asgd" else
          asgd.dc_asgd_a(1e-3, momentum=0.9, num_workers=num_workers))
    batches = np.ones((num_events, 2, 64), np.float32) if batches is None else batches
    return Emulator(loss_fn, tx, PARAMS, trace, batches, **options)


@pytest.fixture
def compilations():
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_one_compilation_for_all_pieces(num_devices, compilations):
    emulator = make(num_devices=num_devices, waves_per_call=4, cuts=[7, 30, 31])
    state = emulator.init()
    compilations.clear()
    state, _ = emulator.run(state, 0, 7)
    assert len(compilations) == 1
    for start, stop in ((7, 30), (30, 31), (31, 60)):
        state, _ = emulator.run(state, start, stop)
    emulator.run(emulator.load(emulator.save(state)), 60, 60)
    assert len(compilations) == 1


SOURCES = {
    "function": lambda x: lambda events: x[events],
    "indexed on devices": lambda x: asgd.IndexedBatches(x, lambda events: events),
    "indexed on host": lambda x: asgd.IndexedBatches(x, lambda events: events, on_device=False),
}


@pytest.mark.parametrize("source, num_devices", [
    ("function", 1), ("indexed on devices", 4), ("indexed on host", 4)])
def test_calls_of_any_length_are_one_program(source, num_devices, compilations):
    batches = SOURCES[source](np.ones((300, 2, 64), np.float32))
    emulator = make(num_events=300, batches=batches, num_devices=num_devices, waves_per_call=16,
                    cuts=[7, 30, 31, 100, 211])
    state, _ = emulator.run(emulator.init(), 0, 7)
    compilations.clear()
    for start, stop in ((7, 30), (30, 31), (31, 100), (100, 211), (211, 300)):
        state, _ = emulator.run(state, start, stop)
    assert not compilations


def test_nothing_is_moved_unasked_while_waves_run():
    emulator = make()
    state, array, call = emulator.init(), jnp.ones(3), emulator._call

    def moving(*args):
        array[0]  # The index comes from the host.
        return call(*args)

    emulator._call = moving
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        emulator.run(state)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_buffers_are_donated(num_devices):
    emulator = make(num_devices=num_devices)
    state = emulator.init()
    after, _ = emulator.run(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.snapshots)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("num_devices, algorithm", [(1, "asgd"), (4, "dc_asgd_a")])
def test_rings_are_not_copied(num_devices, algorithm):
    """What the program needs besides its arguments does not grow with the number of rows."""
    few, many = (make(n, 300, num_devices=num_devices, algorithm=algorithm) for n in (8, 40))
    assert many.plan.num_slots > 30
    ring = PARAMS_BYTES * 30 // num_devices
    assert many.temporary_bytes() - few.temporary_bytes() < ring // 8


@pytest.mark.parametrize("num_devices, dtype, item", [
    (1, None, 4), (4, None, 4), (4, jnp.bfloat16, 2)])
def test_snapshots_take_what_is_planned(num_devices, dtype, item):
    emulator = make(num_devices=num_devices, snapshot_dtype=dtype)
    assert emulator.plan.num_slots <= 8 + num_devices
    for leaf, whole in zip(jax.tree.leaves(emulator.init().snapshots), jax.tree.leaves(PARAMS)):
        for shard in leaf.addressable_shards:
            assert shard.data.nbytes == emulator.plan.num_slots * item * whole.size / num_devices


def test_whole_arrays_are_on_every_device():
    emulator = make(num_devices=4)
    placed = emulator._spmd.put(np.arange(3.0), WHOLE)
    assert [s.data.shape for s in placed.addressable_shards] == [(3,)] * 4

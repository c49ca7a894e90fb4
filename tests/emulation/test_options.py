"""Options that give something up: rounded snapshots, batched gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import Emulator
from asgd.emulation.server import keep_as

EVENTS = 40
TRACE = asgd.simulate(protocols.asynchronous(), timing.Timing(timing.gamma(1.0, 0.5)), 6, EVENTS,
                      seed=3)
PARAMS = {"w": np.linspace(-1, 1, 12).reshape(3, 4), "s": np.float64(0.3), "n": np.zeros(5)}


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["w"]) * params["s"] + params["n"].sum() - 0.2) ** 2)


def emulate(tx=None, params=PARAMS, **options):
    batches = np.random.default_rng(0).normal(size=(EVENTS, 4, 3))
    batches = batches.astype(np.asarray(params["w"]).dtype)
    tx = tx or asgd.dc_asgd_a(0.2, momentum=0.5, num_workers=6)
    return asgd.emulate(loss_fn, tx, params, TRACE, batches, **options)


def test_rounded_snapshots_by_hand(x64):
    """f = p^2 / 2: each gradient is its snapshot, rounded to 8 bits; the server is not rounded."""
    trace = asgd.Trace([0, 1, 0, 1], [0, 0, 1, 2])
    got = asgd.emulate(lambda p, b: 0.5 * b * p**2, optax.sgd(0.25), jnp.float64(1.01), trace,
                       np.ones(4), snapshot_dtype=jnp.bfloat16)

    def rounded(x):
        # 8 significant bits, to nearest: exact in float64.
        scale = 2.0 ** (np.floor(np.log2(abs(x))) - 7)
        return np.round(x / scale) * scale

    versions = [1.01]
    for read in trace.read_version:
        versions.append(versions[-1] - 0.25 * rounded(versions[read]))
    assert float(got.params) == versions[-1]
    np.testing.assert_array_equal(
        got.losses, [0.5 * rounded(versions[r]) ** 2 for r in trace.read_version])


def test_delay_compensation_sees_the_rounded_snapshot(x64):
    trace = asgd.Trace([0], [0])
    tx = asgd.dc_asgd_c(0.5, strength=2.0)
    got = asgd.emulate(lambda p, b: b * p, tx, jnp.float64(1.01), trace, np.ones(1),
                       snapshot_dtype=jnp.bfloat16)
    # u = g + 2 g g (w - w_bak) with g = 1 and w_bak = 1.0078125, that is 1.01 to 8 bits.
    np.testing.assert_allclose(got.params, 1.01 - 0.5 * (1 + 2 * (1.01 - 1.0078125)), rtol=1e-15)


def test_rounded_snapshots_as_the_reference(x64):
    got, want = (emulate(snapshot_dtype="bfloat16", backend=b) for b in ("jit", "debug"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got.params, want.params)
    exact = emulate()
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (got.params, exact.params))))


@pytest.mark.parametrize("options", [
    dict(num_devices=8), dict(num_devices=4, backend="pmap", layout="replicated")], ids=str)
def test_rounded_snapshots_have_the_same_bits_everywhere(options):
    params = jax.tree.map(np.float32, PARAMS)
    want = emulate(params=params, snapshot_dtype=jnp.bfloat16)
    got = emulate(params=params, snapshot_dtype=jnp.bfloat16, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_parameters_that_are_reduced():
    """Where a program reads parameters from must not change how it sums them up."""
    params = jax.tree.map(np.float32, PARAMS)
    want = emulate(params=params)
    got = emulate(params=params, num_devices=8)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_narrow_and_integer_leaves_stay_as_they_are():
    params = {"half": jnp.ones(3, jnp.float16), "step": jnp.arange(2)}
    kept = keep_as(jnp.bfloat16, params)
    assert kept["half"].dtype == jnp.float16 and kept["step"].dtype == jnp.int32


@pytest.mark.parametrize("num_devices, worker_tx", [(1, None), (2, optax.trace(0.9))])
def test_batched_gradients_are_the_same_to_rounding(num_devices, worker_tx, x64):
    want = emulate(worker_tx=worker_tx)
    got = emulate(worker_tx=worker_tx, num_devices=num_devices, events_per_device=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), got, want)


def test_batched_gradients_take_fewer_waves():
    emulator = Emulator(loss_fn, optax.sgd(0.1), jax.tree.map(np.float32, PARAMS), TRACE,
                        np.ones((EVENTS, 4, 3), np.float32), events_per_device=4)
    assert emulator.plan.width == 4
    assert emulator.plan.num_waves < EVENTS / 2


@pytest.mark.parametrize("options, message", [
    (dict(snapshot_dtype=jnp.int8), "snapshot_dtype must be a floating type or None"),
    (dict(snapshot_dtype="int32"), "snapshot_dtype must be a floating type or None"),
    (dict(events_per_device=0), "events_per_device must be at least 1, got 0"),
    (dict(events_per_device=1.5), "events_per_device must be an integer"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        emulate(params=jax.tree.map(np.float32, PARAMS), **options)

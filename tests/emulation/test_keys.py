"""Transformations that draw random numbers, with a typed key as their state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.emulation import Emulator

TRACE = asgd.Trace([0, 1, 0, 2, 1, 0], [0, 0, 1, 0, 2, 3])
PARAMS = {"w": jnp.ones(5), "s": jnp.float32(1.0)}


def noise(seed=0):
    """Adds a number drawn from the worker's own stream to every gradient."""
    def update_fn(updates, state, params=None):
        key, draw = jax.random.split(state)
        return jax.tree.map(lambda g: g + jax.random.normal(draw), updates), key

    return optax.GradientTransformation(lambda params: jax.random.key(seed), update_fn)


def emulate(**options):
    return asgd.emulate(lambda p, b: (b * p["w"]).sum() * p["s"], optax.sgd(0.1), PARAMS, TRACE,
                        np.ones(6, np.float32), **options)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_workers_draw_from_their_own_streams(impl):
    with jax.default_prng_impl(impl):
        # A gradient of 1 for each element, one update each, on f = sum(w).
        got = asgd.emulate(lambda p, b: b * p.sum(), optax.sgd(1.0), jnp.zeros(3), TRACE,
                           np.ones(6, np.float32), worker_tx=noise())
        total, keys = 0.0, [jax.random.key(0)] * 3
        for worker in TRACE.worker:
            keys[worker], draw = jax.random.split(keys[worker])
            total -= 1.0 + float(jax.random.normal(draw))
    np.testing.assert_allclose(got.params, total, rtol=1e-6)


@pytest.mark.parametrize("options", [
    dict(num_devices=4, backend="pmap"), dict(num_devices=2, layout="replicated")], ids=str)
def test_bits(options):
    want = emulate(worker_tx=noise())
    got = emulate(worker_tx=noise(), **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_optax_noise_and_resumption():
    worker_tx = optax.add_noise(0.1, 0.55, 7)
    whole = emulate(worker_tx=worker_tx)
    assert np.ptp(whole.params["w"]) > 0

    def make(num_devices):
        return Emulator(lambda p, b: (b * p["w"]).sum() * p["s"], optax.sgd(0.1), PARAMS, TRACE,
                        np.ones(6, np.float32), worker_tx=worker_tx, cuts=[3],
                        num_devices=num_devices)

    first, second = make(1), make(4)
    arrays = first.save(first.run(first.init(), 0, 3)[0])
    assert not any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in arrays)
    params = second.params(second.run(second.load(arrays), 3)[0])
    jax.tree.map(np.testing.assert_array_equal, params, whole.params)


def test_the_servers_noise_needs_the_replicated_layout():
    got = [asgd.emulate(lambda p, b: b * p.sum(), optax.chain(noise(), optax.sgd(1.0)),
                        jnp.zeros(3), TRACE, np.ones(6, np.float32), layout="replicated",
                        num_devices=n) for n in (1, 2)]
    np.testing.assert_array_equal(got[0].params, got[1].params)
    total, key = 0.0, jax.random.key(0)
    for _ in TRACE.worker:
        key, draw = jax.random.split(key)
        total -= 1.0 + float(jax.random.normal(draw))
    np.testing.assert_allclose(got[0].params, total, rtol=1e-6)

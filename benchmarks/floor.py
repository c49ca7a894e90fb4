"""Where the floor is for the MLP.

`matmuls` is the gradient's matrix products alone. `asgd` and `dc_asgd_a` are scans written by hand
for this model and optimizer: read a snapshot from a ring, compute, update, write a snapshot; for
`dc_asgd_a` XLA then copies the ring of mean squares at every step. Ratios are gradients per second
over those of synchronous SGD with the same momentum; for `torch` those of the matrix products over
the plain PyTorch loop, the most by which anything with these products can be faster than that.

On several devices, `asgd` is asynchronous SGD of as many workers that take turns, written by hand:
every device gathers the version it needs, and the gradients of a turn become one update each, which is
what no exact asynchronous SGD can do without.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from benchmarks import event_loops, measure, synchronous, workloads
from benchmarks.setup import WORKERS, cluster_trace

DEVICES = (1, 4)


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    runs = _one_device() if options.devices == 1 else _several(options.devices)
    work = workloads.make("mlp", workloads.GRADIENTS["mlp"])
    seconds = measure.interleaved(runs, options.repeats)
    for name in runs:
        reference = "synchronous, momentum" if name == "dc_asgd_a" else "synchronous"
        over = seconds["torch"] / seconds["matmuls"] if name == "torch" else (
            seconds[reference] / seconds[name])
        yield {"loop": name, "devices": options.devices, **measure.spread(over),
               "gradients_per_s": round(work.num_gradients / float(np.median(seconds[name])))}


def _one_device():
    work = workloads.make("mlp", workloads.GRADIENTS["mlp"])
    trace = cluster_trace(work.num_gradients)
    runs = {
        "synchronous": synchronous.one_device(work, optax.sgd(0.001), scan=True),
        "synchronous, momentum": synchronous.one_device(work, optax.sgd(0.001, 0.9), scan=True),
        "matmuls": _prepare(work, trace, _matmuls, lambda params: params),
        "asgd": _prepare(work, trace, _asgd(work), _server),
        "dc_asgd_a": _prepare(work, trace, _dc_asgd_a(work), _server),
    }
    if importlib.util.find_spec("torch"):
        runs["torch"] = event_loops.torch_loop(work, trace, "asgd")
    return runs


def _several(num_devices):
    work = workloads.make("mlp", workloads.GRADIENTS["mlp"])
    return {"synchronous": synchronous.sharded(work, optax.sgd(0.001), num_devices, scan=True),
            "asgd": _sharded_asgd(work, num_devices)}


def _sharded_asgd(work, num_devices):
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("d",))
    flat, unravel = ravel_pytree(work.params)
    size = -(-flat.size // num_devices)

    def step(versions, batch):  # [D, size] of this device's shard: what each device reads next.
        params = unravel(lax.all_to_all(versions, "d", 0, 0).ravel()[: flat.size])
        loss, grads = jax.value_and_grad(work.loss)(params, jax.tree.map(lambda x: x[0], batch))
        grads = jnp.pad(ravel_pytree(grads)[0], (0, num_devices * size - flat.size))
        grads = lax.all_to_all(grads.reshape(num_devices, size), "d", 0, 0)
        shard, new = versions[-1], []
        for grad in grads:
            shard = shard - 0.001 * grad
            new.append(shard)
        return jnp.stack(new), loss

    specs = P(None, "d"), P(None, "d")
    compiled = jax.jit(jax.shard_map(
        lambda versions, batches: lax.scan(step, versions, batches), mesh=mesh, in_specs=specs,
        out_specs=(specs[0], P()), check_vma=False), donate_argnums=0)
    versions = np.broadcast_to(np.pad(flat, (0, num_devices * size - flat.size)),
                               (num_devices, num_devices * size))
    versions, batches = jax.device_put(
        (versions, jax.tree.map(lambda x: x.reshape((-1, num_devices) + x.shape[1:]),
                                work.batches)), NamedSharding(mesh, P(None, "d")))

    def prepare():
        carry = jax.block_until_ready(jnp.copy(versions))
        return lambda: jax.block_until_ready(compiled(carry, batches))

    return prepare


def _prepare(work, trace, step, init):
    compiled = jax.jit(lambda carry, xs: lax.scan(step, carry, xs), donate_argnums=0)
    xs = (jax.tree.map(jnp.asarray, work.batches), jnp.asarray(trace.worker))

    def prepare():
        carry = jax.block_until_ready(jax.tree.map(jnp.copy, init(work.params)))
        return lambda: jax.block_until_ready(compiled(carry, xs))

    return prepare


def _server(params):
    def ring():
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (WORKERS,) + x.shape), params)

    zeros = jax.tree.map(jnp.zeros_like, params)
    return params, ring(), zeros, jax.tree.map(jnp.zeros_like, ring())


def _read(ring, worker):
    return jax.tree.map(lambda r: lax.dynamic_index_in_dim(r, worker, keepdims=False), ring)


def _write(ring, worker, tree):
    return jax.tree.map(lambda r, t: lax.dynamic_update_index_in_dim(r, t, worker, 0), ring, tree)


def _asgd(work):
    def step(carry, xs):
        params, snapshots, velocity, mean_squares = carry
        batch, worker = xs
        loss, grads = jax.value_and_grad(work.loss)(_read(snapshots, worker), batch)
        params = jax.tree.map(lambda w, g: w - 0.001 * g, params, grads)
        return (params, _write(snapshots, worker, params), velocity, mean_squares), loss

    return step


def _dc_asgd_a(work):
    def step(carry, xs):
        params, snapshots, velocity, mean_squares = carry
        batch, worker = xs
        stale = _read(snapshots, worker)
        loss, grads = jax.value_and_grad(work.loss)(stale, batch)
        mean_square = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g,
                                   _read(mean_squares, worker), grads)
        velocity = jax.tree.map(
            lambda m, g, v, w, b: 0.9 * m + g + 2.0 / jnp.sqrt(v + 1e-7) * g * g * (w - b),
            velocity, grads, mean_square, params, stale)
        params = jax.tree.map(lambda w, m: w - 0.001 * m, params, velocity)
        return (params, _write(snapshots, worker, params), velocity,
                _write(mean_squares, worker, mean_square)), loss

    return step


def _matmuls(params, xs):
    (images, _), _ = xs
    first, second, third = (params[f"Dense_{i}"]["kernel"] for i in range(3))
    x = images.reshape(len(images), -1)
    y = x @ first
    z = y @ second
    out = z @ third
    dz = out @ third.T
    dy = dz @ second.T
    grads = x.T @ dy, y.T @ dz, z.T @ out
    new = {f"Dense_{i}": {"kernel": g, "bias": params[f"Dense_{i}"]["bias"]}
           for i, g in enumerate(grads)}
    return new, out[0, 0]

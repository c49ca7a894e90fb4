"""Plain synchronous data parallelism in JAX: what asynchronous emulation is compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from asgd.emulation.convolutions import canonical_convolutions
from benchmarks.workloads import Workload

DECAY = 0.9  # Of the running statistics, as the emulation's default.


def one_device(work: Workload, tx: optax.GradientTransformation, scan: bool = False,
               unroll: int = 1, rewritten: bool = False):
    """Returns a function that prepares synchronous SGD, one jitted call a step or a scan.

    Args:
      work: what is trained.
      tx: the optimizer.
      scan: whether all steps are one call.
      unroll: steps in a turn of the scan.
      rewritten: whether convolutions are rewritten, as the emulation does.
    """
    gradient = _gradient(work, rewritten)

    def step(carry, batch):
        params, opt_state, model_state = carry
        loss, statistics, grads = gradient(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        model_state = jax.tree.map(lambda s, b: DECAY * s + (1 - DECAY) * b,
                                   model_state, statistics)
        return (optax.apply_updates(params, updates), opt_state, model_state), loss

    num_steps = len(jax.tree.leaves(work.batches)[0])
    if scan:
        batches = jax.tree.map(jnp.asarray, work.batches)
        compiled = jax.jit(functools.partial(lax.scan, step, unroll=unroll), donate_argnums=0)
    else:
        batches = [jax.tree.map(lambda x: jnp.asarray(x[i]), work.batches)
                   for i in range(num_steps)]
        compiled = jax.jit(step, donate_argnums=0)

    return _preparer(compiled, (work.params, tx.init(work.params), work.model_state), batches, scan)


def sharded(work: Workload, tx: optax.GradientTransformation, num_devices: int,
            scan: bool = False, unroll: int = 1, rewritten: bool = False):
    """Returns a function that prepares synchronous SGD on several devices, as `one_device`.

    Parameters and optimizer state are split over the devices: a step gathers the parameters,
    computes a gradient on every device, and scatters their mean, as ZeRO-2 does.
    """
    gradient = _gradient(work, rewritten)
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("d",), axis_types=(AxisType.Auto,))
    flat, unravel = ravel_pytree(work.params)
    size = -(-flat.size // num_devices)
    padded = np.zeros(num_devices * size, flat.dtype)
    padded[: flat.size] = flat

    def step(carry, batch):
        shard, opt_state, model_state = carry
        params = unravel(lax.all_gather(shard, "d", tiled=True)[: flat.size])
        loss, statistics, grads = gradient(params, jax.tree.map(lambda x: x[0], batch))
        grads = jnp.pad(ravel_pytree(grads)[0], (0, num_devices * size - flat.size))
        grads = lax.psum_scatter(grads, "d", tiled=True) / num_devices
        updates, opt_state = tx.update(grads, opt_state, shard)
        model_state = jax.tree.map(lambda s, b: DECAY * s + (1 - DECAY) * lax.pmean(b, "d"),
                                   model_state, statistics)
        return (optax.apply_updates(shard, updates), opt_state, model_state), loss

    opt_state = tx.init(jnp.asarray(padded))
    specs = (P("d"), jax.tree.map(lambda x: P("d") if x.ndim else P(), opt_state), P())
    body = functools.partial(lax.scan, step, unroll=unroll) if scan else step
    batch_spec, loss_spec = (P(None, "d"), P(None)) if scan else (P("d"), P())
    compiled = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=(specs, batch_spec), out_specs=(specs, loss_spec),
        check_vma=False), donate_argnums=0)

    def put(tree, specs):
        return jax.device_put(tree, jax.tree.map(
            lambda s: NamedSharding(mesh, s), jax.tree.broadcast(specs, tree)))

    # [T, ...] -> [steps, D, ...]
    batches = jax.tree.map(
        lambda x: x[: len(x) // num_devices * num_devices].reshape(
            (-1, num_devices) + x.shape[1:]), work.batches)
    num_steps = len(jax.tree.leaves(batches)[0])
    batches = put(batches, batch_spec) if scan else [
        put(jax.tree.map(lambda x: x[i], batches), batch_spec) for i in range(num_steps)]

    # More in the queue can stall several CPU devices.
    return _preparer(compiled, put((padded, opt_state, work.model_state), specs), batches, scan,
                     wait_every=8)


def _preparer(compiled, start, batches, scan, wait_every=None):
    def prepare():
        # A copy, as the buffers are donated.
        carry = jax.block_until_ready(jax.tree.map(jnp.copy, start))

        def run():
            nonlocal carry
            if scan:
                jax.block_until_ready(compiled(carry, batches))
                return
            for number, batch in enumerate(batches, 1):
                carry, loss = compiled(carry, batch)
                if wait_every and number % wait_every == 0:
                    jax.block_until_ready(loss)
            jax.block_until_ready((carry, loss))

        return run

    return prepare


def _gradient(work, rewritten):
    """Returns a function of (params, batch) to loss, batch statistics or None, and gradient."""
    has_aux = work.model_state is not None
    loss = canonical_convolutions(work.loss) if rewritten else work.loss
    compute = jax.value_and_grad(loss, has_aux=has_aux)

    def gradient(params, batch):
        value, grads = compute(params, batch)
        return (*value, grads) if has_aux else (value, None, grads)

    return gradient

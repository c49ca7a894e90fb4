"""What a worker computes: the very gradient that the emulation computes, in a program of its own."""

from typing import Any, Callable, NamedTuple, Optional

import jax
import numpy as np

from asgd.emulation import feed, ring
from asgd.emulation.gradient import event_gradient, in_own_loop
from asgd.emulation.workers import Workers


class Sent(NamedTuple):
    """What arrives at the server.

    Attributes:
      loss: at the snapshot, a NumPy scalar.
      gradient: transformed by the worker, in the layout's form.
      statistics: of the batch, or None.
      worker_state: the worker's own, afterwards.
    """

    loss: Any
    gradient: Any
    statistics: Any
    worker_state: Any


class _Event(NamedTuple):
    number: Any
    worker: Any


class Gradients:
    """Computes gradients of one worker after the other, on any device.

    Args:
      loss: ``loss(params, batch, key) -> (scalar, statistics)``.
      worker_tx: the workers' transformation, on whole gradients.
      batches: function from batch numbers to rows.
      layout: "sharded" or "replicated", the form in which parameters come and gradients go.
      params: shapes of whole parameters.
      seed: of the keys.
    """

    def __init__(self, loss: Callable[..., Any], worker_tx: Any, batches: Callable[..., Any],
                 layout: str, params: Any, seed: int):
        self._batches = batches
        self._key_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
        place = ring.layout(layout, 1)
        compute = event_gradient(loss, Workers(worker_tx, place, params).on_worker)

        def program(count, parts, worker_state, batch, event, key_data):
            whole = jax.tree.map(lambda x, like: x.reshape(like.shape), parts, params)
            loss, statistics, (gradient, worker_state) = in_own_loop(
                count, compute, ((whole, worker_state), batch, event,
                                 jax.random.wrap_key_data(key_data)))
            return jax.tree.map(lambda x: x[0], (
                loss, place.collect(gradient), statistics, worker_state))

        self._program = jax.jit(program)

    def __call__(self, params: Any, worker_state: Any, batch: int, worker: int,
                 device: Optional[jax.Device] = None, count: int = 1) -> Sent:
        """Computes a gradient, and waits for it.

        Args:
          params: the snapshot, in the layout's form.
          worker_state: the worker's own.
          batch: number of the batch.
          worker: who computes.
          device: where; by default on JAX's first device.
          count: 0 computes nothing, but compiles.
        """
        row = jax.tree.map(lambda x: x[0], feed.rows_of(self._batches, np.array([batch])))
        event = _Event(np.uint32(batch), np.int32(worker))
        args = (np.int32(count), params, worker_state, row, event, self._key_data)
        sent = self._program(*jax.device_put(args, device or jax.devices()[0]))
        loss, *rest = jax.block_until_ready(sent)
        return Sent(np.asarray(loss)[()], *rest)


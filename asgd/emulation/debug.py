"""The reference to step through: one event after the other, no jit, no devices."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster.trace import Trace
from asgd.emulation import elementwise, feed, inputs
from asgd.emulation.server import keep_as


class DebugEmulator:
    """Does what :class:`asgd.emulation.Emulator` does, in plain Python.

    Every version still to be read is kept as a tree of its own, so breakpoints and prints in
    the loss and in the transformation see the values themselves.
    """

    def __init__(self, loss_fn, tx, params, trace: Trace, batches, *, worker_tx=None, seed=0,
                 model_state=None, model_state_decay=0.9, snapshot_dtype=None, cuts: Sequence[int] = ()):
        del cuts
        self.trace = trace
        self._tx = optax.with_extra_args_support(tx)
        self._worker_tx = optax.with_extra_args_support(worker_tx or optax.identity())
        self._params = jax.tree.map(jnp.asarray, params)
        self._model_state = jax.tree.map(jnp.asarray, model_state)
        self._decay = model_state_decay
        self._snapshot_dtype = snapshot_dtype
        self._last_read = np.full(trace.num_updates + 1, -1)
        self._last_read[trace.read_version] = np.arange(len(trace))
        self._batches = feed.checked(batches, trace.batch)
        self._key = jax.random.key(seed)
        self._loss = inputs.uniform_loss(loss_fn, model_state is not None)
        if len(trace):
            inputs.check_loss(self._loss, self._params, self._model_state,
                              feed.first_row(self._batches, trace.batch))
        if (trace.applied & ~trace.updates).any():
            elementwise.check_waits_for_update(self._tx, self._params)

    def init(self) -> Any:
        """Returns the emulated cluster before the first event."""
        return dict(
            params=self._params, opt_state=self._tx.init(self._params),
            snapshots={0: self._rounded(self._params)}, model_state=self._model_state,
            worker_states=[self._worker_tx.init(self._params)] * self.trace.num_workers)

    def run(self, state: Any, start: int = 0, stop: int | None = None, until: Any = None):
        """Executes the events ``start .. stop - 1``; returns the new state and the losses."""
        stop = len(self.trace) if stop is None else stop
        losses = []
        with jax.disable_jit():
            for event in range(start, stop):
                state, loss = self._step(dict(state), event)
                losses.append(np.asarray(loss))
                inputs.check_losses(losses[-1][None], event, self.trace)
        return state, np.asarray(losses)

    def _step(self, state, event):
        trace = self.trace
        worker = int(trace.worker[event])
        snapshot = state["snapshots"][int(trace.read_version[event])]
        number = trace.batch[event:event + 1]
        batch = jax.tree.map(lambda x: jnp.asarray(x[0]), feed.rows_of(self._batches, number))
        (loss, statistics), gradient = jax.value_and_grad(self._loss, has_aux=True)(
            snapshot, batch, jax.random.fold_in(self._key, int(number[0])))
        if not trace.applied[event]:
            return state, loss

        worker_states = list(state["worker_states"])
        gradient, worker_states[worker] = self._worker_tx.update(
            gradient, worker_states[worker], snapshot, worker=jnp.int32(worker))
        update = bool(trace.updates[event])
        updates, opt_state = self._tx.update(
            gradient, state["opt_state"], state["params"],
            staleness=jnp.int32(trace.version[event] - trace.read_version[event]),
            stale_params=snapshot, worker=jnp.int32(worker),
            delay=jnp.float32(trace.finish_time[event] - trace.start_time[event]),
            update=jnp.bool_(update))
        params, snapshots = state["params"], dict(state["snapshots"])
        if update:
            params = optax.apply_updates(params, updates)
            snapshots[int(trace.version[event]) + 1] = self._rounded(params)
        snapshots = {v: s for v, s in snapshots.items() if self._last_read[v] > event}
        model_state = jax.tree.map(lambda s, b: self._decay * s + (1 - self._decay) * b,
                                   state["model_state"], statistics)
        return dict(params=params, opt_state=opt_state, snapshots=snapshots,
                    model_state=model_state, worker_states=worker_states), loss

    def _rounded(self, params):
        kept = keep_as(self._snapshot_dtype, params)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), kept, params)

    def params(self, state: Any) -> Any:
        """Returns the server's parameters."""
        return jax.device_get(state["params"])

    def model_state(self, state: Any) -> Any:
        """Returns the server's running statistics."""
        return jax.device_get(state["model_state"])

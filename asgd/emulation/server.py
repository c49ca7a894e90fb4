"""Topology 1: a parameter server (papers A, C and E)."""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.cluster.trace import Trace
from asgd.emulation import ring
from asgd.emulation.fixed_state import fixed_state
from asgd.emulation.inputs import check_losses
from asgd.emulation.waves import Plan
from asgd.emulation.workers import Workers


class ServerState(NamedTuple):
    """What the emulated cluster remembers between waves; trees are in the layout's form.

    Attributes:
      params: the server's parameters.
      snapshots: ring [num_slots] of the versions that are still to be read.
      opt_state: state of the server's transformation.
      worker_state: ring [num_workers] of the workers' own transformation states.
      model_state: the server's running statistics, whole on every device, or None.
    """

    params: Any
    snapshots: Any
    opt_state: Any
    worker_state: Any
    model_state: Any


class Event(NamedTuple):
    """What is known of each event of a wave, arrays [W]."""

    number: Any
    worker: Any
    staleness: Any
    delay: Any
    update: Any
    applied: Any
    read_slot: Any
    write_slot: Any


class ParameterServer(Workers):
    """Applies gradients in the order of the trace.

    Args:
      tx: the server's transformation, called on each applied gradient with the extra arguments
        ``staleness``, ``stale_params``, ``worker``, ``delay`` and ``update``.
      worker_tx: the workers' transformation, on whole gradients.
      layout: where trees live, from :mod:`asgd.emulation.ring`.
      trace: the trace; facts that hold for all of it (every gradient makes an update, none is
        dropped) shorten the program.
      plan: its plan.
      params: shapes of the parameters.
      model_state_decay: decay d of the running statistics, :math:`s \\leftarrow d s + (1-d) b`.
      snapshot_dtype: floating type that snapshots are kept in, or None for the parameters' own.
    """

    def __init__(self, tx, worker_tx, layout, trace: Trace, plan: Plan, params,
                 model_state_decay: float, snapshot_dtype: Any = None):
        super().__init__(worker_tx, layout, params)
        self.tx = tx
        self._trace = trace
        self._plan = plan
        self._decay = model_state_decay
        self._snapshot_dtype = snapshot_dtype
        self._all_update = bool(trace.updates[trace.applied].all())
        self._all_applied = bool(trace.applied.all())
        self._all_written = bool((plan.write_slot >= 0).all())
        self._fixed = fixed_state(self.tx, params) if self._all_update else None

    def init(self, params: Any, worker_state: Any, model_state: Any) -> ServerState:
        """Returns the state before the first event, from trees in the layout's form."""
        return ServerState(
            params=params,
            snapshots=ring.repeat(keep_as(self._snapshot_dtype, params), self._plan.num_slots),
            opt_state=jax.tree.map(_strong, self.tx.init(params)),
            worker_state=ring.repeat(worker_state, self._trace.num_workers),
            model_state=model_state,
        )

    def describe(self, events: np.ndarray) -> Event:
        """Returns what the program needs to know of events, in NumPy arrays like ``events``."""
        trace, plan = self._trace, self._plan
        return Event(
            number=events.astype(np.uint32),
            worker=trace.worker[events],
            staleness=(trace.version - trace.read_version)[events].astype(np.int32),
            delay=(trace.finish_time - trace.start_time)[events].astype(np.float32),
            update=trace.updates[events],
            applied=trace.applied[events],
            read_slot=plan.read_slot[events],
            write_slot=plan.write_slot[events],
        )

    def observe(self, state: ServerState) -> tuple[()]:
        """Nothing: losses say it all."""
        return ()

    def check(self, losses: np.ndarray, start: int) -> None:
        """Raises :class:`NonFiniteLossError` for the first bad loss of an applied gradient."""
        check_losses(losses, start, self._trace)

    def apply(self, state: ServerState, arrived: Any, event: Event) -> ServerState:
        """Applies one event: a gradient, the worker's new state, and its batch statistics."""
        if self._all_applied:
            return self._apply(state, arrived, event)
        return self._apply_if(event.applied, state, arrived, event)

    def _apply_if(self, wanted, state, arrived, event):
        # A loop of no or one turn: unlike a conditional it never copies what it leaves alone. The
        # turn's number keeps products of the gradient in it, where they round as without a loop.
        return lax.fori_loop(0, wanted.astype(int), lambda turn, s: self._apply(
            s, lax.optimization_barrier((arrived, turn))[0], event), state)

    def _apply(self, state, arrived, event):
        (gradient, worker_state), statistics = arrived
        worker_state = ring.write(state.worker_state, event.worker, worker_state)
        update = np.bool_(True) if self._all_update else event.update
        known = self._where_fixed(jnp.full_like, state.opt_state, state.opt_state)
        updates, opt_state = self.tx.update(
            gradient, known, state.params, staleness=event.staleness,
            stale_params=self._used(ring.read(state.snapshots, event.read_slot)),
            worker=event.worker,
            delay=event.delay, update=update)
        params = optax.apply_updates(state.params, updates)
        if not self._all_update:
            params = jax.tree.map(lambda new, old: jnp.where(update, new, old),
                                  params, state.params)
        opt_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype),
                                 opt_state, state.opt_state)
        opt_state = self._where_fixed(lambda old, _: old, state.opt_state, opt_state)

        def write(_, snapshots):
            return ring.write(snapshots, event.write_slot, keep_as(self._snapshot_dtype, params))

        if self._all_written:
            snapshots = write(0, state.snapshots)
        else:
            snapshots = lax.fori_loop(
                0, (event.write_slot >= 0).astype(int), write, state.snapshots)
        model_state = jax.tree.map(lambda s, b: self._decay * s + (1 - self._decay) * b,
                                   state.model_state, statistics)
        return ServerState(params, snapshots, opt_state, worker_state, model_state)

    def _where_fixed(self, fn, fixed_leaves, other_leaves):
        if self._fixed is None:
            return other_leaves
        return jax.tree.map(lambda fixed, a, b: b if fixed is None else fn(a, fixed),
                            self._fixed, fixed_leaves, other_leaves, is_leaf=lambda x: x is None)


def keep_as(dtype: Any, params: Any) -> Any:
    """Returns parameters as snapshots keep them: floats wider than ``dtype`` rounded to it."""
    def leaf(x):
        wide = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) and (
            jnp.finfo(x.dtype).bits > jnp.finfo(dtype).bits)
        return x.astype(dtype) if wide else x

    return jax.tree.map(leaf, params)


def _strong(leaf: Optional[jax.Array]):
    """Drops a weak type, which would change what a loop carries."""
    return lax.convert_element_type(leaf, leaf.dtype)

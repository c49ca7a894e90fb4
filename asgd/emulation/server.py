"""Topology 1: a parameter server (papers A, C and E)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asgd.cluster.trace import Trace
from asgd.emulation import ring
from asgd.emulation.inputs import check_losses
from asgd.emulation.update import Held, ServerUpdate
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
      tx: the server's transformation, see :class:`asgd.emulation.update.ServerUpdate`.
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
        self._trace = trace
        self._plan = plan
        self._snapshot_dtype = snapshot_dtype
        self._all_applied = bool(trace.applied.all())
        self._all_written = bool((plan.write_slot >= 0).all())
        self._update = ServerUpdate(tx, params, model_state_decay,
                                    bool(trace.updates[trace.applied].all()))

    def init(self, params: Any, worker_state: Any, model_state: Any) -> ServerState:
        """Returns the state before the first event, from trees in the layout's form."""
        held = self._update.init(params, model_state)
        return ServerState(
            snapshots=ring.repeat(keep_as(self._snapshot_dtype, params), self._plan.num_slots),
            worker_state=ring.repeat(worker_state, self._trace.num_workers),
            **held._asdict(),
        )

    def describe(self, events: np.ndarray) -> Event:
        """Returns what the program needs to know of events, in NumPy arrays like ``events``."""
        trace, plan = self._trace, self._plan
        return Event(
            number=trace.batch[events].astype(np.uint32),
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

    def apply_finite(self, state: ServerState, arrived: Any, event: Event, finite: Any) -> ServerState:
        """As `apply`, but drops a gradient that is not finite: nothing changes but the version."""
        state = self._apply_if(event.applied & finite, state, arrived, event)
        return self.keep_version(state, ~finite, event)

    def keep_version(self, state: ServerState, dropped: Any, event: Event) -> ServerState:
        """Makes the version that a dropped gradient would have made, of the parameters there are."""
        def keep(_, snapshots):
            return ring.write(snapshots, event.write_slot, keep_as(self._snapshot_dtype, state.params))

        return state._replace(snapshots=lax.fori_loop(
            0, (dropped & (event.write_slot >= 0)).astype(int), keep, state.snapshots))

    def trained(self, state: ServerState) -> Any:
        """Returns the server's parameters."""
        return state.params

    def _apply_if(self, wanted, state, arrived, event):
        # A loop of no or one turn: unlike a conditional it never copies what it leaves alone. The
        # turn's number keeps products of the gradient in it, where they round as without a loop.
        return lax.fori_loop(0, wanted.astype(int), lambda turn, s: self._apply(
            s, lax.optimization_barrier((arrived, turn))[0], event), state)

    def _apply(self, state, arrived, event):
        (gradient, worker_state), statistics = arrived
        worker_state = ring.write(state.worker_state, event.worker, worker_state)
        held = self._update(
            Held(state.params, state.opt_state, state.model_state), gradient, statistics,
            self._used(ring.read(state.snapshots, event.read_slot)), event)

        def write(_, snapshots):
            return ring.write(snapshots, event.write_slot, keep_as(self._snapshot_dtype, held.params))

        if self._all_written:
            snapshots = write(0, state.snapshots)
        else:
            snapshots = lax.fori_loop(
                0, (event.write_slot >= 0).astype(int), write, state.snapshots)
        return ServerState(snapshots=snapshots, worker_state=worker_state, **held._asdict())


def keep_as(dtype: Any, params: Any) -> Any:
    """Returns parameters as snapshots keep them: floats wider than ``dtype`` rounded to it."""
    def leaf(x):
        wide = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) and (
            jnp.finfo(x.dtype).bits > jnp.finfo(dtype).bits)
        return x.astype(dtype) if wide else x

    return jax.tree.map(leaf, params)
